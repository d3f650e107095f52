// Runs in every page the benchmark opens, before the page's own scripts. `qvdProbe.arm` starts listening;
// the benchmark then uses a control as a visitor does; `qvdProbe.finished` tells when that was and when what
// the view shows had last changed on the screen. All times are milliseconds on the page's own clock.

window.qvdProbe = (() => {
  let webgl = 0;
  const getContext = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    if (String(kind).startsWith('webgl')) webgl++;
    return getContext.call(this, kind, ...rest);
  };

  const SHAPE = ['d', 'x', 'y', 'width', 'height', 'transform', 'href', 'style'];

  const inWindow = (node) => {
    const box = node.getBoundingClientRect();
    return box.height > 0 && box.bottom > 0 && box.top < innerHeight;
  };
  const plots = (view) => [...document.querySelectorAll(`#${view} .js-plotly-plot`)].filter(inWindow);
  const words = (view) => [...document.querySelectorAll(`#${view} [data-kind=words]`)].filter(inWindow);

  // What decides the pixels of each figure and text that can be seen, by node. Names that plotly draws anew at
  // every drawing are left out.
  function pictures(view) {
    const found = new Map(words(view).map((node) => [node, node.textContent]));
    for (const plot of plots(view)) {
      const marks = Array.from(plot.querySelectorAll('.main-svg :is(path, rect, image, text)'), (node) => {
        const text = node.tagName === 'text' ? node.textContent : '';
        return SHAPE.map((name) => node.getAttribute(name) ?? '').join() + text;
      });
      found.set(plot, marks.join('\n'));
    }
    return found;
  }

  // What is shown, apart from where: plotly's margins depend by a pixel on what it has drawn before.
  function content(view) {
    const figures = plots(view).map((plot) => [plot.data, plot.layout.shapes, plot.layout.annotations]);
    return JSON.stringify([figures, words(view).map((node) => node.textContent)]);
  }

  const answers = (view) => document.querySelector(`#${view} .qvd-view`)?.dataset.shown;

  let run = null;
  const DEAF = 3000; // a page that has just come to the front may miss a click

  // Listens for `event` on what matches `target`, and for changes of what `view` shows.
  function arm({ target, event, view }) {
    const mine = { view, first: null, last: null, end: null, touched: 0, answers: answers(view), figures: new Set() };
    const noted = (e) => {
      if (!e.isTrusted || !e.target.closest?.(target)) return;
      mine.first ??= e.timeStamp;
      mine.last = e.timeStamp;
    };
    document.addEventListener(event, noted, true);
    let before = pictures(view);
    let waiting = false;
    // Two frames after the nodes changed the first of these frames is on the screen.
    const observer = new MutationObserver(() => {
      mine.touched = performance.now();
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => requestAnimationFrame(() => {
        waiting = false;
        const now = performance.now();
        const after = pictures(view);
        const changed = [...after].filter(([node, picture]) => before.get(node) !== picture);
        before = after;
        if (!changed.length) return; // a drawing that changes nothing does not count
        mine.end = now;
        for (const [node] of changed) if (node.matches('.js-plotly-plot')) mine.figures.add(node);
      }));
    });
    const what = { subtree: true, childList: true, attributes: true, characterData: true };
    observer.observe(document.getElementById(view), what);
    mine.release = () => {
      document.removeEventListener(event, noted, true);
      observer.disconnect();
    };
    run = mine;
  }

  // Waits until the view has its answer and nothing has moved for `quiet` ms. `end` is null if nothing has changed
  // that can be seen, and `first` too if the control did not even notice that it was used.
  function finished({ quiet, patience }) {
    const mine = run;
    const began = performance.now();
    return new Promise((resolve, reject) => {
      const look = () => {
        const now = performance.now();
        const { first, last, end, view, figures } = mine;
        const answered = mine.answers === undefined ? end !== null : answers(view) !== mine.answers;
        if (first !== null && answered && now - Math.max(mine.touched, last) > quiet) {
          mine.release();
          resolve({ first, last, end, figures: figures.size });
        } else if (first === null && now - began > DEAF) {
          mine.release();
          resolve({ first, last, end, figures: 0 });
        } else if (now - began > patience) {
          mine.release();
          reject(new Error('the view did not answer'));
        } else setTimeout(look, 20);
      };
      look();
    });
  }

  return { arm, finished, content, contexts: () => webgl };
})();
