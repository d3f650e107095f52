// The comparator's behaviour: the body of Gradio's js_on_load, run once per mounted component with
// `element` (its node), `props` (live values) and `watch` (change notices) in scope.
//
// Everything lives in this closure, so several comparators on a page never meet, and there is no listener
// outside `element`: removing it from the page lets go of all of this.

const root = element.querySelector('.cmp');
// Gradio pads every gr.HTML, even with padding=False; phones have no room to give away.
element.parentElement.style.padding = '0';
const part = name => root.querySelector(`[data-testid="comparator-${name}"]`);
const brush = name => part(name).getContext('2d', { alpha: false, willReadFrequently: true });
const sides = [brush('reference'), brush('quantized')];
const view = brush('view');         // wipe and difference are composed into this one canvas
const preview = brush('preview-image');
const scrub = part('scrub');
const divider = part('divider');

const NORMAL_WIDTH = 420;           // CSS pixels of one clip when there is room
let clip = null;                    // the payload now shown, plus its decoded sheets
let charts = [];
let frame = 0;
let playing = false;
let looping = true;
let speed = 1;
let mode = 'side';
let gain = 4;
let wipe = 0.5;                     // share of the width that shows the reference
let onScreen = true;
let request = 0;                    // the pending animation frame, 0 if none
let since = 0;                      // when the current frame was due
let turn = 0;                       // counts loads, so that a slow one cannot overwrite a newer one
let beforeHover = null;             // what to return to when the pointer leaves a chart

// ---- loading -------------------------------------------------------------------------------------

async function decode(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  // A bitmap stays decoded (an <img> may be decoded again at each draw), and 'none' keeps the colours
  // exactly as they were sent.
  return createImageBitmap(image, { colorSpaceConversion: 'none' });
}

function release(sheets) {
  sheets?.flat().forEach(bitmap => bitmap.close());
}

async function load(payload) {
  const mine = ++turn;
  pause();
  beforeHover = null;
  try {
    if (payload && payload.clips) await loadClips(payload, () => mine === turn);
    else if (payload && 'preview' in payload) await loadPreview(payload, () => mine === turn);
    else showMessage('empty', props.placeholder);
  } catch (error) {
    if (mine === turn) showMessage('error', 'These clips could not be decoded by this browser.');
  }
}

function showMessage(state, text) {
  forgetClip();
  root.dataset.state = state;
  delete root.dataset.filled;
  part('placeholder').textContent = text;
}

function forgetClip() {
  release(clip?.sheets);
  clip = null;
}

async function loadPreview(payload, current) {
  const bitmap = payload.preview && await decode(payload.preview);
  if (!current()) return bitmap && bitmap.close();
  forgetClip();
  // Size and paint in one task: the page never shows the empty canvas in between.
  if (bitmap) {
    fit(preview, bitmap.width, bitmap.height);
    preview.drawImage(bitmap, 0, 0);
    root.style.setProperty('--cmp-preview-width', `${previewWidth(bitmap.width, bitmap.height)}px`);
    bitmap.close();
  }
  part('preview-image').hidden = !bitmap;
  part('preview-text').textContent = payload.text ?? '';
  root.dataset.state = 'preview';
  layout();
}

async function loadClips(payload, current) {
  const sheets = await Promise.all(payload.clips.map(side => Promise.all(side.sheets.map(decode))));
  if (!current()) return release(sheets);
  forgetClip();
  clip = { ...payload, sheets };
  for (const context of [...sides, view]) fit(context, clip.width, clip.height);
  clip.clips.forEach((side, index) => {
    root.querySelectorAll(`[data-side="${index}"]`).forEach(name => { name.textContent = side.label; });
    sides[index].canvas.setAttribute('aria-label', side.label);
  });
  scrub.max = clip.frames - 1;
  divider.setAttribute('aria-valuemin', 0);
  divider.setAttribute('aria-valuemax', clip.width);
  root.style.setProperty('--cmp-clip-width', `${clipWidth(clip.width, clip.height)}px`);
  root.dataset.state = 'ready';
  root.dataset.filled = '';
  frame = 0;
  layout();
  show(0);
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) play();
}

// Canvas pixels are clip pixels, one to one; CSS does the enlarging.
function fit(context, width, height) {
  context.canvas.width = width;
  context.canvas.height = height;
}

// Whole multiples make every clip pixel the same size on screen; they are used where one is near.
function clipWidth(width, height) {
  const multiple = Math.floor(450 / width) * width;
  const wide = multiple >= 360 ? multiple : NORMAL_WIDTH;
  return Math.min(wide, Math.round(520 * width / height));
}

// As wide as a clip; a picture of two clips, twice that.
function previewWidth(width, height) {
  return width / height < 1.8 ? clipWidth(width, height) : 2 * clipWidth(width / 2, height);
}

// ---- drawing -------------------------------------------------------------------------------------

function show(index) {
  if (!clip) return;
  frame = Math.min(clip.frames - 1, Math.max(0, index));
  draw();
  root.dataset.frame = frame;
  scrub.value = frame;
  scrub.style.setProperty('--cmp-done', `${100 * frame / Math.max(1, clip.frames - 1)}%`);
  scrub.setAttribute('aria-valuetext', `frame ${frame + 1} of ${clip.frames}`);
  part('frame').textContent = `frame ${frame + 1} / ${clip.frames}`;
  const psnr = clip.psnr[frame], ssim = clip.ssim[frame];
  part('psnr-value').textContent = psnr === null ? 'identical' : `${psnr.toFixed(2)} dB`;
  part('ssim-value').textContent = ssim === null ? 'identical' : ssim.toFixed(4);
  charts.forEach(chart => chart.mark(frame));
}

// Both sides are cut with the same index in the same task, so no screen refresh can fall between them.
function draw() {
  if (!clip) return;
  const { width, height } = clip;
  const sheet = Math.floor(frame / clip.frames_per_sheet);
  const cell = frame % clip.frames_per_sheet;
  const left = cell % clip.columns * width, top = Math.floor(cell / clip.columns) * height;
  sides.forEach((side, index) => {
    side.drawImage(clip.sheets[index][sheet], left, top, width, height, 0, 0, width, height);
  });
  if (mode === 'wipe') drawWipe();
  if (mode === 'difference') drawDifference();
}

// The divider falls between whole clip pixels: no pixel is ever a mixture of both.
function drawWipe() {
  const { width, height } = clip;
  const column = Math.round(wipe * width);
  view.drawImage(sides[0].canvas, 0, 0);
  if (column < width) {
    view.drawImage(sides[1].canvas, column, 0, width - column, height, column, 0, width - column, height);
  }
  divider.style.left = `${100 * column / width}%`;
  divider.setAttribute('aria-valuenow', column);
  divider.setAttribute('aria-valuetext', `${clip.clips[0].label} up to column ${column} of ${width}`);
  view.canvas.setAttribute('aria-label',
    `Left of the divider ${clip.clips[0].label}, right of it ${clip.clips[1].label}`);
}

function drawDifference() {
  const { width, height } = clip;
  const [a, b] = sides.map(side => side.getImageData(0, 0, width, height).data);
  const image = view.createImageData(width, height);
  const out = image.data;           // a clamped array: amplified values saturate at 255
  let largest = 0;
  for (let i = 0; i < out.length; i += 4) {
    for (let channel = i; channel < i + 3; channel++) {
      const difference = Math.abs(a[channel] - b[channel]);
      if (difference > largest) largest = difference;
      out[channel] = gain * difference;
    }
    out[i + 3] = 255;
  }
  view.putImageData(image, 0, 0);
  part('difference-note').textContent = largest === 0 ? 'identical frame'
    : `largest: ${largest} of 255`;
  const label = gain === 1 ? 'Difference, not amplified (×1)' : `Difference, amplified ×${gain}`;
  part('difference-label').textContent = label;
  view.canvas.setAttribute('aria-label', label);
}

// Things that depend on the room there is. Enlarged clips keep hard pixel edges; clips shown smaller than
// they are get smooth scaling, since dropping pixels would add patterns neither clip has.
function layout() {
  for (const { canvas } of [...sides, view, preview]) {
    const shown = canvas.clientWidth * devicePixelRatio;
    if (shown) canvas.style.imageRendering = shown >= canvas.width ? 'pixelated' : 'auto';
  }
  if (!clip) return;
  charts = [
    { testid: 'psnr', name: 'PSNR', axis: 'PSNR (dB)', unit: ' dB', digits: 2, least: 2, cap: Infinity },
    { testid: 'ssim', name: 'SSIM', axis: 'SSIM', unit: '', digits: 4, least: 0.02, cap: 1 },
  ].map(kind => {
    const svg = part(kind.testid);
    const spec = { ...kind, values: clip[kind.testid] };
    svg.setAttribute('aria-label', describeChart(spec));
    const chart = drawChart(svg, spec, Math.max(200, svg.parentElement.clientWidth));
    chart.mark(frame);
    return chart;
  });
}

// ---- playing -------------------------------------------------------------------------------------

function play() {
  if (!clip || clip.frames < 2) return;
  beforeHover = null;
  if (!looping && frame === clip.frames - 1) show(0);
  playing = true;
  since = performance.now();
  reflectPlaying();
  keepGoing();
}

function pause() {
  playing = false;
  cancelAnimationFrame(request);
  request = 0;
  reflectPlaying();
}

function reflectPlaying() {
  root.dataset.playing = playing;
  part('play').setAttribute('aria-label', playing ? 'Pause' : 'Play');
}

function keepGoing() {
  if (playing && onScreen && !request) request = requestAnimationFrame(tick);
}

// Every frame gets its turn, even on a slow machine: skipping would hide exactly what one wants to see.
function tick(now) {
  request = 0;
  if (!playing || !onScreen || !root.isConnected) return;
  const interval = 1000 / (clip.fps * speed);
  if (now - since >= interval) {
    since = now - since > 2 * interval ? now : since + interval;
    if (frame + 1 < clip.frames) show(frame + 1);
    else if (looping) show(0);
    else return pause();
  }
  keepGoing();
}

// ---- controls ------------------------------------------------------------------------------------

function step(by) {
  if (!clip) return;
  beforeHover = null;
  pause();
  show((frame + by + clip.frames) % clip.frames);
}

function jump(index) {
  pause();
  show(index);
}

// A group of buttons of which one is pressed.
function choice(attribute, initial, choose) {
  const buttons = [...root.querySelectorAll(`button[data-${attribute}]`)];
  const press = value => {
    choose(value);
    for (const button of buttons) {
      button.setAttribute('aria-pressed', button.dataset[attribute] === value);
    }
  };
  buttons.forEach(button => button.addEventListener('click', () => press(button.dataset[attribute])));
  press(initial);
}

choice('mode', mode, value => { mode = root.dataset.mode = value; draw(); layout(); });
choice('gain', String(gain), value => { gain = Number(value); draw(); });
choice('speed', String(speed), value => { speed = Number(value); });

part('play').addEventListener('click', () => playing ? pause() : play());
part('previous').addEventListener('click', () => step(-1));
part('next').addEventListener('click', () => step(1));
scrub.addEventListener('input', () => jump(Number(scrub.value)));
part('loop').addEventListener('click', event => {
  looping = !looping;
  event.currentTarget.setAttribute('aria-pressed', looping);
});

// A button pressed with the mouse leaves the focus with the panel, so that space then plays the clips
// instead of pressing that button again. Buttons reached with Tab keep it, as they should.
root.addEventListener('mousedown', event => {
  if (!event.target.closest('button')) return;
  event.preventDefault();
  root.focus({ preventScroll: true });
});

root.addEventListener('keydown', event => {
  if (!clip || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  const focus = event.target;
  // Space on a button presses that button, and arrows on the scrub slider already move it.
  if (event.key === ' ' && focus.tagName !== 'BUTTON') playing ? pause() : play();
  else if (event.key === 'ArrowLeft' && focus !== scrub) step(-1);
  else if (event.key === 'ArrowRight' && focus !== scrub) step(1);
  else if (event.key === 'Home' && focus !== scrub) jump(0);
  else if (event.key === 'End' && focus !== scrub) jump(clip.frames - 1);
  else return;
  event.preventDefault();           // or the page would scroll
});

function moveWipe(share) {
  wipe = Math.min(1, Math.max(0, share));
  if (clip) drawWipe();
}

function dragWipe(event) {
  const box = view.canvas.getBoundingClientRect();
  moveWipe((event.clientX - box.left) / box.width);
}

const viewport = root.querySelector('.cmp-view');
viewport.addEventListener('pointerdown', event => {
  if (mode !== 'wipe' || event.button !== 0) return;
  viewport.setPointerCapture(event.pointerId);
  divider.focus({ preventScroll: true });
  event.preventDefault();
  dragWipe(event);
});
viewport.addEventListener('pointermove', event => {
  if (mode === 'wipe' && viewport.hasPointerCapture(event.pointerId)) dragWipe(event);
});
divider.addEventListener('keydown', event => {
  if (!clip) return;
  const column = Math.round(wipe * clip.width);
  const stride = Math.max(1, Math.round(clip.width / 64)) * (event.shiftKey ? 8 : 1);
  if (event.key === 'ArrowLeft' || event.key === 'ArrowDown') moveWipe((column - stride) / clip.width);
  else if (event.key === 'ArrowRight' || event.key === 'ArrowUp') moveWipe((column + stride) / clip.width);
  else if (event.key === 'Home') moveWipe(0);
  else if (event.key === 'End') moveWipe(1);
  else return;
  event.preventDefault();           // also keeps the arrows from stepping the clip
});

// Hovering a chart shows the frame under the pointer and leaving it returns; a click or drag stays.
for (const [index, testid] of ['psnr', 'ssim'].entries()) {
  const svg = part(testid);
  svg.addEventListener('pointermove', event => {
    if (!clip || (event.pointerType !== 'mouse' && !event.buttons)) return;
    if (event.buttons) beforeHover = null;
    else beforeHover ??= { frame, playing };
    jump(charts[index].at(event.clientX));
  });
  svg.addEventListener('pointerdown', event => {
    if (!clip) return;
    beforeHover = null;
    jump(charts[index].at(event.clientX));
  });
  svg.addEventListener('pointerleave', () => {
    if (!beforeHover) return;
    const { frame: earlier, playing: wasPlaying } = beforeHover;
    beforeHover = null;
    show(earlier);
    if (wasPlaying) play();
  });
}

// ---- life cycle ----------------------------------------------------------------------------------

let knownWidth = 0;
const resizing = new ResizeObserver(() => {
  if (root.clientWidth === knownWidth) return;
  knownWidth = root.clientWidth;
  layout();
});

// Fires when the panel is scrolled away, hidden with its tab or removed, and when it comes back. A removed
// one never does (Gradio builds a new one), and observers left running would keep its pixels in memory.
const watching = new IntersectionObserver(entries => {
  onScreen = entries[entries.length - 1].isIntersecting;
  since = performance.now();
  if (root.isConnected) return keepGoing();
  turn++;
  pause();
  forgetClip();
  resizing.disconnect();
  watching.disconnect();
});

resizing.observe(root);
watching.observe(root);

watch('value', () => load(props.value));
load(props.value);
