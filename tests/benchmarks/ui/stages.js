// Notes when an update of a figure panel passes through which stage; runs before the page's own scripts.
// `qvdStages.take()` gives what was noted since it was last called, in milliseconds on the page's clock.

window.qvdStages = (() => {
  let seen = {};
  const now = () => performance.now();

  const fetched = window.fetch;
  window.fetch = async (...what) => {
    const address = String(what[0]?.url ?? what[0]);
    if (!/queue\/join|component_server|\/run\//.test(address)) return fetched(...what);
    seen.sent = now();
    const response = await fetched(...what);
    if (!address.includes('queue/join')) { // past the queue, the reply is the result
      seen.arrived = now();
      seen.json = 0;
    }
    return response;
  };

  // What Gradio and the panel spend on JSON, and when the handler's result arrives with its own duration.
  const { parse, stringify } = JSON;
  JSON.parse = function (text, ...rest) {
    const began = now();
    const value = parse.call(this, text, ...rest);
    if (value?.msg === 'process_completed') {
      seen.arrived = now();
      seen.handler = 1000 * (value.output?.duration ?? 0);
      seen.bytes = text.length;
      seen.json = 0;
    }
    seen.json = (seen.json ?? 0) + now() - began;
    return value;
  };
  JSON.stringify = function (...what) {
    const began = now();
    const text = stringify.apply(this, what);
    seen.json = (seen.json ?? 0) + now() - began;
    return text;
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
        const drawn = react(...what);
        drawn.then(() => { seen.drawn = now(); });
        return drawn;
      };
    },
  });

  return { take: () => { const taken = seen; seen = {}; return taken; } };
})();
