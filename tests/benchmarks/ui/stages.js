// Notes when an update of a live view passes through which stage; runs before the page's own scripts.
// `qvdStages.take()` gives what was noted since it was last called, in milliseconds on the page's clock.

window.qvdStages = (() => {
  let seen = {};
  const now = () => performance.now();

  const fetched = window.fetch;
  window.fetch = async (...what) => {
    const address = String(what[0]?.url ?? what[0]);
    if (!address.includes('component_server')) return fetched(...what);
    seen.sent = now();
    const response = await fetched(...what);
    const text = await response.clone().text();
    seen.arrived = now();
    seen.bytes = text.length;
    return response;
  };

  let plotly;
  Object.defineProperty(window, 'Plotly', {
    configurable: true,
    get: () => plotly,
    set: (library) => {
      plotly = library;
      const react = library.react;
      library.react = (...what) => {
        seen.drawing ??= now();
        seen.drawings = (seen.drawings ?? 0) + 1;
        return react(...what);
      };
    },
  });

  return { take: () => { const taken = seen; seen = {}; return taken; } };
})();
