// A live view's behaviour: the body of Gradio's js_on_load, run once per mounted component with `element`
// (its node), `props` (live values), `watch` (change notices), `trigger` (events) and `server` in scope.

const root = element.querySelector('.qvd-view');
const message = root.querySelector('.qvd-view-message');
const name = root.dataset.name;
element.parentElement.style.padding = '0';

const CONFIG = {
  displaylogo: false,
  responsive: false,                // its listener would outlive the view; see `resizing`
  // Named one by one: among plotly's own is one that sends the figure to a server of theirs.
  modeBarButtons: [['zoom2d', 'pan2d', 'resetScale2d']],
};
// A finger that drags a chart wants to scroll the page, and has no use for a bar of ways to drag.
const byTouch = matchMedia('(pointer: coarse)').matches;
if (byTouch) CONFIG.displayModeBar = false;

const slots = new Map([...root.querySelectorAll('[data-slot]')].map(node => [node.dataset.slot, node]));
let asked = null;                   // the newest question; its choices are all controls'
const wanted = new Map();           // by its node, the newest figure
const drawn = new Map();            // by its node, the figure that is drawn, as text
const chosen = {};                  // what controls said last, which a question under way may not know yet
let stale = false;                  // whether it is newer than what is shown
let working = false;
let knownWidth = 0;
let pause = 0;                      // the timer that ends with `drawSeen(NEAR)`
const NEAR = 200;                   // pixels around the window, which the next scroll may show

const visible = () => root.isConnected && root.clientWidth > 0;
const near = (node, margin) => {
  const box = node.getBoundingClientRect();
  return box.bottom > -margin && box.top < innerHeight + margin;
};
// A view further away asks when it is scrolled to, so that those in the window need not wait for its answers.
const due = () => stale && visible() && (root.dataset.state !== 'ready' || near(root, NEAR));

// ---- asking --------------------------------------------------------------------------------------

// One question is under way at a time; later ones only mark what is shown as stale, so the last one wins. Answers
// on the way are shown too: a figure follows a slider while it is dragged.
async function update() {
  if (working) return;
  working = true;
  try {
    while (due()) {
      stale = false;
      const began = performance.now();
      const patience = setTimeout(() => {
        root.dataset.waiting = '';
        if (root.dataset.state !== 'ready') say('notice', 'Computing; the first answer can take some seconds…');
      }, 600);
      const reply = asked.slots ? asked : read(await server.answer_live(asked));
      clearTimeout(patience);
      delete root.dataset.waiting;
      await show(reply);
      root.dataset.took = Math.round(performance.now() - began);
    }
  } catch (error) {
    say('error', 'This view could not be drawn. Reload the page to try again.');
  } finally {
    working = false;
    clearTimeout(pause);
    pause = setTimeout(() => drawSeen(NEAR), 100);
  }
}

const read = answer => (typeof answer === 'string' ? JSON.parse(answer) : null);

async function show(reply) {
  if (!reply) return say('error', 'The server did not answer. Change a control, or reload the page, to try again.');
  if (reply.error) return say('notice', reply.error);
  say('ready', '');
  // First what is there at all, since it decides how wide the figures beside each other are.
  for (const [slot, content] of Object.entries(reply.slots)) slots.get(slot).hidden = !content;
  for (const [slot, content] of Object.entries(reply.slots)) {
    const node = slots.get(slot);
    if (node.dataset.kind === 'words') node.innerHTML = content;   // made, and escaped, by the server
    else wanted.set(node, content);
  }
  await drawSeen(0);
  root.dataset.shown = Number(root.dataset.shown ?? 0) + 1;
}

function say(state, text) {
  root.dataset.state = state;
  message.textContent = text;
}

// ---- drawing -------------------------------------------------------------------------------------

// plotly.js is 4.6 MB: fetched once per page, when the first figure is to be drawn.
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

// A figure takes some 20 ms to draw. Those in the window come with the answer, those near it in a pause after it,
// and the others when they are scrolled to.
async function drawSeen(margin) {
  for (const node of wanted.keys()) {
    if (margin && working) return;
    if (node.hidden || near(node, margin)) await draw(node);
  }
}

async function draw(node) {
  const figure = wanted.get(node);
  const plot = node.querySelector('.qvd-figure-plot');
  if (!figure) {
    window.Plotly?.purge(plot);
    node.dataset.state = 'empty';
    drawn.delete(node);
    return;
  }
  const text = JSON.stringify(figure);
  if (drawn.get(node) === text) return;         // most controls change some of the figures only
  const { data, layout } = JSON.parse(text);    // plotly writes into what it is given
  if (byTouch) layout.dragmode = false;
  if (root.clientWidth < 480) narrow(data, layout);
  node.style.setProperty('--figure-height', `${layout.height}px`);
  plot.setAttribute('aria-label', layout.meta?.alt_text ?? '');
  if (node.dataset.state !== 'ready') {
    node.dataset.state = 'loading';
    node.querySelector('.qvd-figure-message').textContent = 'Loading the figure…';
  }
  const Plotly = await plotly();
  if (!visible()) {                 // hidden or removed meanwhile
    stale = true;
    return;
  }
  knownWidth = root.clientWidth;
  const isNew = node.dataset.state !== 'ready';
  await Plotly.react(plot, data, layout, CONFIG);
  drawn.set(node, text);
  if (isNew) {
    plot.on('plotly_click', event => {
      const { x, y, pointNumber, data: trace } = event.points[0];
      trigger('pick', { slot: node.dataset.slot, x, y, name: trace.meta?.names?.[pointNumber] });
    });
  }
  node.dataset.state = 'ready';
  node.dataset.drawn = Number(node.dataset.drawn ?? 0) + 1;
}

// Where there is no room beside a figure: its colour bar goes below it, and the legend gets lines of its own.
function narrow(data, layout) {
  const bars = data.filter(trace => trace.colorbar);
  if (bars.length) {
    const height = layout.height - layout.margin.t - layout.margin.b;   // what a colour bar's place is counted in
    const below = { orientation: 'h', y: -layout.margin.b / height, yanchor: 'top', thickness: 8 };
    for (const { colorbar } of bars) Object.assign(colorbar, below);
    layout.margin.b += 50;
    layout.height += 50;
  }
  if (layout.showlegend) layout.height += 12 * data.length;
}

// ---- files ---------------------------------------------------------------------------------------

root.addEventListener('click', async event => {
  const button = event.target.closest('button[data-format]');
  if (!button || !asked) return;
  button.disabled = true;
  const slot = button.closest('[data-slot]').dataset.slot;
  const { slots: _, ...question } = asked;
  const file = await server.download_live({ ...question, slot, format: button.dataset.format });
  button.disabled = false;
  if (!file || file.error) return;
  const link = document.createElement('a');
  link.href = `data:${file.type};base64,${file.data}`;
  link.download = file.name;
  link.click();
});

// ---- life cycle ----------------------------------------------------------------------------------

window.qvdViews ??= {};
window.qvdViews[name] = {
  choose(control, value) {
    chosen[control] = value;
    if (!asked?.choices || asked.choices[control] === value) return;   // a menu tells it before Gradio does
    asked.choices[control] = value;
    stale = true;
    update();
  },
};

function take() {
  if (!props.value) return;
  asked = structuredClone({ ...props.value });
  if (asked.choices) Object.assign(asked.choices, chosen);
  stale = true;
  update();
}

// Tells of the window's and the sidebar's changes, and of a tab shown for the first time or again.
const resizing = new ResizeObserver(() => {
  if (!root.isConnected) return letGo();
  if (!visible()) return;
  if (stale) update();
  else if (root.clientWidth !== knownWidth) {
    knownWidth = root.clientWidth;
    for (const plot of root.querySelectorAll('.qvd-figure[data-state="ready"] .qvd-figure-plot')) {
      window.Plotly.Plots.resize(plot);
    }
  }
});

// Fires when the view is removed from the page; Gradio builds a new one if it comes back.
const watching = new IntersectionObserver(() => {
  if (!root.isConnected) letGo();
});

// Fires when the view, or a figure of it, is scrolled to.
const looking = new IntersectionObserver(() => (due() ? update() : drawSeen(NEAR)), { rootMargin: `${NEAR}px` });
looking.observe(root);
for (const node of slots.values()) if (node.dataset.kind === 'figure') looking.observe(node);

function letGo() {
  clearTimeout(pause);
  resizing.disconnect();
  watching.disconnect();
  looking.disconnect();
  for (const plot of root.querySelectorAll('.qvd-figure-plot')) window.Plotly?.purge(plot);
}

resizing.observe(root);
watching.observe(root);
watch('value', take);
take();
