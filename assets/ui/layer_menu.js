// The body of Gradio's js_on_load of a layer menu: entries come as [block, words, path] in `props.layers`.

const select = element.querySelector('select');

function fill() {
  const groups = new Map();
  for (const [block, words, path] of props.layers ?? []) {
    if (!groups.has(block)) {
      groups.set(block, Object.assign(document.createElement('optgroup'), { label: block }));
    }
    groups.get(block).append(new Option(words, path));
  }
  const nothing = new Option('Choose a layer', '');
  nothing.hidden = true;
  select.replaceChildren(nothing, ...groups.values());
  show();
}

function show() {
  select.value = props.value ?? '';
}

// At every arrow key. Gradio takes some 80 ms over a new value, so it hears of it when nobody is walking on, and at
// the latest when the menu is left, as for a button.
let pause = 0;

function settle() {
  clearTimeout(pause);
  if (select.value !== props.value) props.value = select.value;
}

select.addEventListener('input', () => {
  window.qvdViews?.[select.dataset.view]?.choose(select.dataset.control, select.value);
  clearTimeout(pause);
  pause = setTimeout(settle, 150);
});
select.addEventListener('blur', settle);
watch('layers', fill);
watch('value', show);
fill();
