// The figure panel's behaviour: the body of Gradio's js_on_load, run once per mounted component with
// `element` (its node), `props` (live values) and `watch` (change notices) in scope.

const root = element.querySelector('.qvd-figure');
const message = root.querySelector('.qvd-figure-message');
const plot = root.querySelector('.qvd-figure-plot');
element.parentElement.style.padding = '0';

const CONFIG = {
  displaylogo: false,
  responsive: false,                // its listener would outlive the panel; see `watching`
  // Named one by one: among plotly's own is one that sends the figure to a server of theirs.
  modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'resetScale2d']],
  toImageButtonOptions: { filename: 'figure', scale: 2 },
};
// A finger that drags a chart wants to scroll the page.
const byTouch = matchMedia('(pointer: coarse)').matches;

let stale = true;                   // whether the value is newer than what is drawn
let drawing = false;
let drawn = 0;                      // how many times, for tests
let knownWidth = 0;

// plotly.js is 4.6 MB: fetched once per page, when the first panel has something to draw.
function plotly() {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  window.qvdPlotly ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = (window.gradio_config?.root ?? '') + root.dataset.script;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      script.remove();
      window.qvdPlotly = undefined; // the next update tries again
      reject(new Error('plotly.js did not load'));
    };
    document.head.append(script);
  });
  return window.qvdPlotly;
}

const visible = () => root.isConnected && root.clientWidth > 0;

function say(state, text) {
  root.dataset.state = state;
  message.textContent = text;
}

// Draws the newest value; while one drawing is under way, later values only mark it stale.
async function draw() {
  if (drawing) return;
  drawing = true;
  try {
    while (stale && visible()) {
      stale = false;
      await drawOnce(props.value);
    }
  } catch (error) {
    window.Plotly?.purge(plot);
    say('error', 'This figure could not be drawn. Reload the page to try again.');
  } finally {
    drawing = false;
  }
}

async function drawOnce(value) {
  if (!value?.data) {
    window.Plotly?.purge(plot);
    plot.removeAttribute('aria-label');
    return say('empty', props.placeholder ?? '');
  }
  // Plotly writes into what it is given, and the value belongs to Gradio.
  const { data, layout } = JSON.parse(JSON.stringify(value));
  if (byTouch) layout.dragmode = false;
  root.style.setProperty('--figure-height', `${layout.height}px`);
  if (root.dataset.state !== 'ready') say('loading', 'Loading the figure…');
  plot.setAttribute('aria-label', layout.meta?.alt_text ?? '');
  const Plotly = await plotly();
  if (!visible()) {                 // hidden or removed meanwhile
    stale = true;
    return;
  }
  knownWidth = root.clientWidth;
  await Plotly.react(plot, data, layout, CONFIG);
  say('ready', '');
  root.dataset.drawn = ++drawn;
}

// ---- life cycle ----------------------------------------------------------------------------------

// Tells of the window's and the sidebar's changes, and of a tab shown for the first time or again.
const resizing = new ResizeObserver(() => {
  if (!root.isConnected) return letGo();
  if (!visible()) return;
  if (stale) draw();
  else if (root.clientWidth !== knownWidth && root.dataset.state === 'ready') {
    knownWidth = root.clientWidth;
    window.Plotly.Plots.resize(plot);
  }
});

// Fires when the panel is removed from the page; Gradio builds a new one if it comes back.
const watching = new IntersectionObserver(() => {
  if (!root.isConnected) letGo();
});

function letGo() {
  resizing.disconnect();
  watching.disconnect();
  window.Plotly?.purge(plot);
}

resizing.observe(root);
watching.observe(root);
watch('value', () => {
  stale = true;
  draw();
});
draw();
