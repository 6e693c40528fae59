// The parts put together.

const canvas = document.getElementById('canvas'), tip = document.getElementById('tip'), searchField = document.getElementById('search');
const started = performance.now();
let picture = null, table = null, details = null, pressed = new Set(), current = -1;

function select(unit, from = '') {
  current = unit;
  picture.select(unit);
  if (unit >= 0 && from !== 'picture') picture.reveal(unit);
  if (unit >= 0 && from !== 'picture') picture.highlight();
  table.select(unit >= 0 && isNode(unit) ? unit : -1);
  details.show(unit, picture);
}

function toggle(number) {
  picture.toggle(number);
}

function emphasize() {
  const { matching } = table;
  const wanted = unit => (!matching || isNode(unit) && matching.has(unit)) && (!pressed.size || pressed.has(wordOf(picture.mode, unit)));
  picture.emphasize(matching || pressed.size ? wanted : null);
}

function hover(unit, at) {
  tip.hidden = unit < 0 || isBox(unit) && picture.open.has(unit - firstBox);
  if (tip.hidden) return;
  const lines = [];
  if (isBox(unit)) {
    const box = boxes[unit - firstBox], shares = picture.shares(unit);
    lines.push(box.path || box.name, box.type, ...shares.slice(0, 4).map(([word, times]) => `${wordName(picture.mode, word)}: ${times.toLocaleString('en')} nodes`));
  } else if (isNode(unit)) {
    const node = nodes[unit];
    lines.push(`#${node.id} ${node.op}`, node.role, `${picture.mode.name}: ${wordName(picture.mode, wordOf(picture.mode, unit))}`,
      node.makes.map(value => values[value][0]).join(', '), node.flops ? si(node.flops, 'FLOP') : '');
  } else {
    const { value } = unitOf(unit);
    lines.push(inputOf.get(value).name || `%${value}`, values[value][1], values[value][0]);
  }
  tip.replaceChildren(...lines.filter(Boolean).map((line, index) => element(index ? 'span' : 'b', {}, line)));
  const room = document.getElementById('picture').getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(at.x + 14, room.width - tip.offsetWidth - 6))}px`;
  tip.style.top = `${Math.max(4, Math.min(at.y + 16, room.height - tip.offsetHeight - 6))}px`;
}

function legend() {
  const mode = picture.mode, words = [...boxes[0].words[data.modes.indexOf(mode)]];
  const drawn = new Set(data.drawn.map(each => each.words[mode.index]));
  drawn.forEach(word => { if (!words.some(([other]) => other === word)) words.push([word, 0]); });
  words.sort((a, b) => (a[0] < 0) - (b[0] < 0) || b[1] - a[1]);
  document.getElementById('legend').replaceChildren(...words.map(([word, times]) => element('button', {
    type: 'button', 'aria-pressed': pressed.has(word), title: word < 0 ? 'no label' : mode.words[word][2],
    on: { click: () => { if (!pressed.delete(word)) pressed.add(word); legend(); emphasize(); } },
  }, element('i', { class: 'swatch', color: wordColor(mode, word) }), wordName(mode, word),
  element('span', { class: 'share' }, times ? times.toLocaleString('en') : 'inputs'))));
}

function setMode(mode) {
  pressed = new Set();
  picture.recolor(mode);
  legend();
  picture.cy.resize();
  emphasize();
  for (const button of document.getElementById('modes').children) {
    const on = button.dataset.mode === mode.name;
    button.setAttribute('aria-checked', on);
    button.tabIndex = on ? 0 : -1;
  }
}

function makeModes() {
  const group = document.getElementById('modes');
  data.modes.forEach(mode => group.append(element('button', { type: 'button', role: 'radio', 'data-mode': mode.name, on: { click: () => setMode(mode) } },
    mode.name[0].toUpperCase() + mode.name.slice(1))));
  group.addEventListener('keydown', event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const count = data.modes.length, next = (data.modes.indexOf(picture.mode) + step + count) % count;
    setMode(data.modes[next]);
    group.children[next].focus();
  });
}

function makeSplitter() {
  const splitter = document.getElementById('splitter'), list = document.getElementById('list');
  const set = height => {
    list.style.height = `${Math.max(80, Math.min(window.innerHeight - 240, height))}px`;
    picture.cy.resize();
  };
  splitter.addEventListener('pointerdown', event => splitter.setPointerCapture(event.pointerId));
  splitter.addEventListener('pointermove', event => { if (splitter.hasPointerCapture(event.pointerId)) set(window.innerHeight - event.clientY - 4); });
  splitter.addEventListener('keydown', event => {
    const step = { ArrowUp: 24, ArrowDown: -24 }[event.key];
    if (step) { event.preventDefault(); set(list.offsetHeight + step); }
  });
}

function makeKeys() {
  canvas.addEventListener('keydown', event => {
    const acts = {
      ArrowLeft: () => picture.panBy(60, 0), ArrowRight: () => picture.panBy(-60, 0), ArrowUp: () => picture.panBy(0, 60),
      ArrowDown: () => picture.panBy(0, -60), '+': () => picture.zoomBy(1.25), '=': () => picture.zoomBy(1.25),
      '-': () => picture.zoomBy(0.8), 0: () => picture.fit(),
      Enter: () => { if (current >= 0 && isBox(current)) toggle(current - firstBox); },
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(acts, event.key)) return;
    event.preventDefault();
    acts[event.key]();
  });
  document.addEventListener('keydown', event => {
    if (event.key === '/' && document.activeElement !== searchField) {
      event.preventDefault();
      searchField.focus();
      searchField.select();
    } else if (event.key === 'Escape') {
      if (searchField.value) { searchField.value = ''; table.search(''); emphasize(); } else select(-1);
    }
  });
}

picture = new Picture(canvas, {
  select: unit => select(unit, 'picture'), hover, change: () => { if (current >= 0 && isBox(current)) details.show(current, picture); },
});
table = new Table({ select });
details = new Details({ select, toggle });
makeModes();
makeSplitter();
makeKeys();
document.getElementById('title').textContent = data.title;
document.getElementById('summary').textContent = data.facts.filter(([name]) => name !== 'kv cache' && name !== 'state').map(([name, what]) => name === 'graph' || name === 'plan' ? what : `${name} ${what}`).join('  ·  ');
for (const [id, act] of Object.entries({
  in: () => picture.zoomBy(1.25), out: () => picture.zoomBy(0.8), fit: () => picture.fit(), fold: () => picture.shallower(),
  unfold: () => picture.deeper(), all: () => picture.everything(),
})) document.getElementById(id).addEventListener('click', act);
searchField.addEventListener('input', () => { table.search(searchField.value); emphasize(); });
searchField.addEventListener('keydown', event => {
  if (event.key !== 'Enter' && event.key !== 'ArrowDown' || !table.found.length) return;
  event.preventDefault();
  table.grid.focus();
  select(table.found[0].position);
});

window.addEventListener('resize', () => hover(-1));

picture.mode = data.modes.find(mode => mode.words.length) || picture.mode;
legend(); // takes its room first
picture.cy.resize();
picture.openLegibly();
picture.draw();
picture.fit();
setMode(picture.mode);
select(-1);

// For scripts that look at the page, and for its tests.
window.genie = Object.freeze({
  cy: picture.cy, ready: performance.now() - started, select,
  at: id => {
    const unit = picture.stand[positionOfId.get(id)], place = picture.cy.getElementById(`u${unit}`).renderedPosition(), room = canvas.getBoundingClientRect();
    return { x: room.x + place.x, y: room.y + place.y, shown: unit === positionOfId.get(id) };
  },
});
