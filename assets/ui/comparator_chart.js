// A per-frame line chart in plain SVG. `comparator.py` puts this file in front of comparator.js.

const SVG_NS = 'http://www.w3.org/2000/svg';
const CHART = { height: 148, left: 64, right: 12, top: 12, bottom: 36 };

function svgNode(parent, tag, attributes, text) {
  const node = document.createElementNS(SVG_NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Round steps (1, 2 or 5 times a power of ten), at most four of them, enclosing the values. `least` keeps
// a nearly constant curve from being blown up into drama; `cap` is the largest possible score.
function axisTicks(values, least, cap) {
  let low = Math.min(...values), high = Math.max(...values);
  const missing = least - (high - low);
  if (missing > 0) [low, high] = [low - missing / 2, high + missing / 2];
  if (high > cap) [low, high] = [low - (high - cap), cap];
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough * 0.999);
  const first = Math.floor(low / step + 1e-6), last = Math.ceil(high / step - 1e-6);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return { digits, ticks: Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step) };
}

// values: one number per frame, null where the frames are identical (an infinite PSNR). Identical frames
// get hollow diamonds on a row of their own above the finite scale.
// Returns mark(frame), which moves the marker without rebuilding anything, and at(clientX) -> frame.
function drawChart(svg, { axis, values, least, cap }, width) {
  const { height, left, right, top, bottom } = CHART;
  const finite = values.filter(value => value !== null);
  const hasIdentical = finite.length < values.length;
  const { digits, ticks } = finite.length ? axisTicks(finite, least, cap) : { digits: 0, ticks: [] };
  const roof = top + (hasIdentical ? 22 : 0);
  const floor = height - bottom;
  const span = Math.max(1, values.length - 1);
  const x = frame => values.length === 1 ? (left + width - right) / 2
    : left + 8 + frame / span * (width - left - right - 16);
  const y = value => value === null ? top + 4
    : floor - (value - ticks[0]) / (ticks[ticks.length - 1] - ticks[0]) * (floor - roof);

  svg.replaceChildren();
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);

  for (const tick of ticks) {
    svgNode(svg, 'line', { class: 'cmp-grid', x1: left, x2: width - right, y1: y(tick), y2: y(tick) });
    svgNode(svg, 'text', { x: left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, tick.toFixed(digits));
  }
  if (hasIdentical) {
    svgNode(svg, 'text', { x: left - 8, y: y(null) + 4, 'text-anchor': 'end' }, 'identical');
    svgNode(svg, 'line', { class: 'cmp-grid', x1: left, x2: width - right, y1: y(null), y2: y(null) });
  }
  // Frame numbers: the first, the last, and round ones between, as many as fit without touching.
  const room = Math.max(1, Math.floor((width - left - right) / 30));
  const stride = [1, 5, 10, 20, 50, 100].find(n => values.length / n <= room) ?? values.length;
  values.forEach((_, frame) => {
    const clear = Math.min(frame, values.length - 1 - frame) >= stride * 0.7;
    if (frame === 0 || frame === values.length - 1 || ((frame + 1) % stride === 0 && clear)) {
      svgNode(svg, 'text', { x: x(frame), y: floor + 16, 'text-anchor': 'middle' }, frame + 1);
    }
  });
  const middle = (left + width - right) / 2;
  svgNode(svg, 'text', { x: middle, y: height - 4, 'text-anchor': 'middle' }, 'frame');
  svgNode(svg, 'text', { 'text-anchor': 'middle',
    transform: `translate(12 ${(roof + floor) / 2}) rotate(-90)` }, axis);

  const guide = svgNode(svg, 'line', { class: 'cmp-guide', y1: top - 4, y2: floor });
  let path = '';
  values.forEach((value, frame) => {
    if (value === null) return;
    const joined = frame > 0 && values[frame - 1] !== null;
    path += `${joined ? 'L' : 'M'}${x(frame).toFixed(1)} ${y(value).toFixed(1)}`;
  });
  svgNode(svg, 'path', { class: 'cmp-line', d: path });
  const radius = values.length > 48 ? 1.5 : 3;
  values.forEach((value, frame) => {
    if (value !== null) {
      svgNode(svg, 'circle', { class: 'cmp-dot', cx: x(frame), cy: y(value), r: radius });
    } else {
      svgNode(svg, 'path', { class: 'cmp-identical', d: `M${x(frame)} ${y(null) - 5}l5 5-5 5-5-5z` });
    }
  });
  const marker = svgNode(svg, 'circle', { class: 'cmp-marker', r: 6 });

  return {
    mark(frame) {
      guide.setAttribute('x1', x(frame));
      guide.setAttribute('x2', x(frame));
      marker.setAttribute('cx', x(frame));
      marker.setAttribute('cy', y(values[frame]));
    },
    at(clientX) {
      const box = svg.getBoundingClientRect();
      const position = (clientX - box.left) / box.width * width;
      const share = (position - x(0)) / Math.max(1, x(values.length - 1) - x(0));
      return Math.round(Math.min(1, Math.max(0, share)) * (values.length - 1));
    },
  };
}

// The same chart in words, for whoever cannot see it.
function describeChart({ name, unit, values, digits }) {
  const say = value => value.toFixed(digits) + unit;
  const identical = values.filter(value => value === null).length;
  const finite = values.filter(value => value !== null);
  const parts = [`${name} of each frame`];
  if (finite.length) {
    const low = Math.min(...finite), high = Math.max(...finite);
    parts.push(`lowest ${say(low)} at frame ${values.indexOf(low) + 1}`);
    parts.push(`highest ${say(high)} at frame ${values.indexOf(high) + 1}`);
  }
  if (identical) parts.push(`${identical} of ${values.length} frames identical`);
  return parts.join(', ');
}
