// Runs in every page the benchmark opens, before the page's own scripts. `qvdProbe.arm` starts listening;
// the benchmark then uses a control as a visitor does; `qvdProbe.finished` tells when that was and when each
// figure had changed on the screen. All times are milliseconds on the page's own clock.

window.qvdProbe = (() => {
  let webgl = 0;
  const getContext = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
    if (String(kind).startsWith('webgl')) webgl++;
    return getContext.call(this, kind, ...rest);
  };

  const SHAPE = ['d', 'x', 'y', 'width', 'height', 'transform', 'href', 'style'];

  // What decides the pixels of a figure. Names that plotly draws anew at every drawing are left out.
  function picture(id) {
    const nodes = document.querySelectorAll(`#${id} .main-svg :is(path, rect, image, text)`);
    const parts = Array.from(nodes, (node) => {
      const text = node.tagName === 'text' ? node.textContent : '';
      return SHAPE.map((name) => node.getAttribute(name) ?? '').join() + text;
    });
    for (const canvas of document.querySelectorAll(`#${id} canvas`)) parts.push(canvas.toDataURL());
    return parts.join('\n');
  }

  // What a figure shows, apart from where: plotly's margins depend by a pixel on what it has drawn before.
  function content(id) {
    const plot = document.querySelector(`#${id} .js-plotly-plot`);
    return JSON.stringify([plot.data, plot.layout.shapes, plot.layout.annotations]);
  }

  let run = null;

  // Listens for `event` on what matches `target`, and for changes of the figures `panels`.
  function arm({ target, event, panels }) {
    const mine = { panels, first: null, last: null, events: 0, shown: {}, changed: {}, redraws: {}, touched: 0 };
    const noted = (e) => {
      if (!e.isTrusted || !e.target.closest?.(target)) return;
      mine.first ??= e.timeStamp;
      mine.last = e.timeStamp;
      mine.events++;
    };
    document.addEventListener(event, noted, true);
    const observers = panels.map((id) => {
      mine.shown[id] = picture(id);
      // Two frames after the nodes changed the first of these frames is on the screen.
      const seen = () => {
        mine.touched = performance.now();
        requestAnimationFrame(() => requestAnimationFrame(() => {
          const now = performance.now();
          const after = picture(id);
          if (after === mine.shown[id]) return; // a drawing that changes nothing does not count
          mine.shown[id] = after;
          mine.changed[id] = now;
          mine.redraws[id] = (mine.redraws[id] ?? 0) + 1;
        }));
      };
      const observer = new MutationObserver(seen);
      const what = { subtree: true, childList: true, attributes: true, characterData: true };
      observer.observe(document.getElementById(id), what);
      return observer;
    });
    mine.release = () => {
      document.removeEventListener(event, noted, true);
      observers.forEach((observer) => observer.disconnect());
    };
    run = mine;
  }

  // Waits until every figure has changed and nothing has moved for `quiet` ms.
  function finished({ quiet, patience }) {
    const mine = run;
    const began = performance.now();
    return new Promise((resolve, reject) => {
      const look = () => {
        const now = performance.now();
        const missing = mine.panels.filter((id) => !(id in mine.changed));
        if (mine.events && !missing.length && now - Math.max(mine.touched, mine.last) > quiet) {
          mine.release();
          const { first, last, events, changed, redraws } = mine;
          resolve({ first, last, events, end: Math.max(...Object.values(changed)), changed, redraws });
        } else if (now - began > patience) {
          mine.release();
          reject(new Error(`${mine.events} events seen; unchanged: ${missing.join(', ') || 'none'}`));
        } else setTimeout(look, 20);
      };
      look();
    });
  }

  return { arm, finished, content, contexts: () => webgl };
})();
