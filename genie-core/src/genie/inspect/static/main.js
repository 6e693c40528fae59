// The parts put together.

const canvas = document.getElementById('canvas'), tip = document.getElementById('tip'), searchField = document.getElementById('search');
const started = performance.now();
let picture = null, table = null, details = null, gantt = null, network = null, pressed = new Set(), current = -1;

function select(unit, from = '') {
  current = unit;
  picture.select(unit);
  if (unit >= 0 && from !== 'picture') picture.reveal(unit);
  if (unit >= 0 && from !== 'picture') picture.highlight();
  if (gantt) gantt.select(unit);
  if (gantt && unit >= 0 && from !== 'gantt') gantt.reveal(unit);
  table.select(unit >= 0 && isNode(unit) ? unit : -1);
  details.show(unit, picture);
}

// Something in the timeline that need not be one node.
function chooseBar(hit) {
  if (!hit) { select(-1, 'gantt'); return; }
  const { row, level, id } = hit;
  if (row.kind === 'steps' && level.name === 'step') {
    select(plan.steps[id].position, 'gantt');
    if (plan.steps[id].again) gantt.choose(hit);
    return;
  }
  const positions = row.kind === 'steps' ? [...level.ids(hit.group)] : [];
  const path = level.name === 'module' ? nodeOf(id).module.split('.').slice(0, level.depth).join('.') : '';
  const box = path ? boxes.findIndex(each => each.path === path) : -1;
  select(box >= 0 ? firstBox + box : -1, 'gantt');
  gantt.choose(hit);
  if (row.kind === 'sent') details.plan.transfer(plan.transfers[id]);
  else if (row.kind === 'bars') details.plan.bar(plan.measured.bars[id]);
  else details.plan.group(path || gantt.label(row, level, hit.group), level.name === 'stage' ? 'stage' : 'module', positions, row.lane.name);
}

function hoverBar(hit, at) {
  if (!hit) { showTip(null); return; }
  const { row, level, group, id } = hit, start = level.start(group), finish = level.finish(group);
  const when = `${duration(finish - start)}, from ${moment(start, (finish - start) / 10)}`;
  if (row.kind === 'sent') {
    const move = plan.transfers[id];
    showTip([`%${move.value}, ${row.lane.name}`, values[move.value][0], `${size(move.bytes)}, ${when}`, seenOf(move, hit), row.measured || !move.critical ? '' : 'on the critical path'], at);
  } else if (row.kind === 'bars') {
    const bar = plan.measured.bars[id];
    showTip([bar.what, `measured, ${bar.where}`, when, bar.bytes ? size(bar.bytes) : '', bar.stage >= 0 ? details.plan.compared(plan.stages[bar.stage], bar) : ''], at);
  } else if (level.name === 'step') {
    const step = plan.steps[id], node = nodeOf(id);
    showTip([`#${node.id} ${node.op}`, node.module, `${when}${row.measured ? ', measured' : ` (${step.source})`}`,
      step.again ? 'run again: cheaper than to send' : '', ...details.plan.measured(id).slice(0, 1).map(([name, what]) => `${name}: ${what}`), step.critical && !row.measured ? 'on the critical path' : ''], at);
  } else {
    const ids = level.ids(group);
    showTip([gantt.label(row, level, group), nodeOf(id).module.split('.').slice(0, level.depth).join('.'), `${ids.length.toLocaleString('en')} nodes on ${row.lane.name}`, when, row.measured ? 'measured' : ''], at);
  }
}

function seenOf(move, { row }) {
  const seen = plan.measured && (plan.measured.sent[move.number] || plan.measured.ofTransfer.get(move.number));
  return !seen || row.measured ? '' : `measured: ${duration(seen.finish - seen.start)} (${difference(move.finish - move.start, seen.finish - seen.start)})`;
}

function toggle(number) {
  picture.toggle(number);
}

function emphasize() {
  const { matching } = table;
  const wanted = unit => (!matching || isNode(unit) && matching.has(unit)) && (!pressed.size || pressed.has(wordOf(picture.mode, unit)));
  picture.emphasize(matching || pressed.size ? wanted : null);
  if (gantt) gantt.emphasize(matching || pressed.size ? wanted : null);
}

function hover(unit, at) {
  if (unit < 0 || isBox(unit) && picture.open.has(unit - firstBox)) { showTip(null); return; }
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
  showTip(lines, at);
}

// ``at`` is where, in the room of the pictures.
function showTip(lines, at) {
  tip.hidden = !lines;
  if (tip.hidden) return;
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
  if (gantt) gantt.recolor();
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

// The ways to see a plan: as its graph, by time, by place.
function setView(name) {
  const shown = { graph: ['canvas', 'tools', 'legend'], timeline: ['chart', 'tools', 'legend'], network: ['network'] };
  for (const id of ['canvas', 'chart', 'network', 'tools', 'legend']) document.getElementById(id).hidden = !shown[name].includes(id);
  for (const id of ['fold', 'unfold', 'all']) document.getElementById(id).hidden = name !== 'graph';
  for (const button of document.getElementById('views').children) {
    const on = button.dataset.view === name;
    button.setAttribute('aria-selected', on);
    button.tabIndex = on ? 0 : -1;
  }
  document.body.dataset.view = name;
  showTip(null);
  if (name === 'graph') {
    picture.cy.resize();
    if (current >= 0) picture.reveal(current);
  } else if (name === 'timeline') gantt.resize();
}

function makeViews() {
  const names = ['timeline', 'graph', 'network'], group = document.getElementById('views');
  group.hidden = false;
  names.forEach(name => group.append(element('button', { type: 'button', role: 'tab', 'data-view': name, on: { click: () => setView(name) } }, name[0].toUpperCase() + name.slice(1))));
  group.addEventListener('keydown', event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (names.indexOf(document.body.dataset.view) + step + names.length) % names.length;
    setView(names[next]);
    group.children[next].focus();
  });
}

function makePlan() {
  const tint = (color, share) => picture.tint(color, dark.matches ? share : share * 0.85);
  gantt = new Gantt(document.getElementById('gantt'), { choose: chooseBar, hover: hoverBar, tint, mode: () => picture.mode });
  const room = document.getElementById('picture');
  const inRoom = event => { const { x, y } = room.getBoundingClientRect(); return { x: event.clientX - x, y: event.clientY - y }; };
  network = new Network(document.getElementById('network'), {
    device: device => { select(-1); details.plan.device(device); }, way: way => { select(-1); details.plan.way(way); },
    hover: (lines, event) => showTip(lines, lines && inRoom(event)),
  });
  const { measured } = plan, note = [element('b', {}, duration(plan.makespan)), ' predicted'];
  if (measured) note.push(' · ', element('b', {}, duration(measured.makespan)), ` measured (${difference(plan.makespan, measured.makespan)}), ${measured.source}${measured.note ? `: ${measured.note}` : ''}`);
  document.getElementById('note').replaceChildren(...note, element('i', {}), 'critical path', measured && measured.steps.length ? ' · hatched: not measured' : '');
  makeViews();
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

const inTime = () => document.body.dataset.view === 'timeline';
const panBy = (x, y) => inTime() ? gantt.pan(x, y) : picture.panBy(x, y);
const zoomBy = factor => inTime() ? gantt.zoom(factor) : picture.zoomBy(factor);
const fit = () => inTime() ? gantt.fit() : picture.fit();

function makeKeys() {
  for (const each of [canvas, document.getElementById('gantt')]) each.addEventListener('keydown', event => {
    const acts = {
      ArrowLeft: () => panBy(60, 0), ArrowRight: () => panBy(-60, 0), ArrowUp: () => panBy(0, 60),
      ArrowDown: () => panBy(0, -60), '+': () => zoomBy(1.25), '=': () => zoomBy(1.25), '-': () => zoomBy(0.8), 0: fit,
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
details = new Details({ select, toggle, transfer: move => { select(-1); gantt.choose({ transfer: move.number, row: {} , level: {} }); details.plan.transfer(move); } });
makeModes();
makeSplitter();
makeKeys();
document.getElementById('title').textContent = data.title;
document.getElementById('summary').textContent = data.facts.filter(([name]) => name !== 'kv cache' && name !== 'state').map(([name, what]) => name === 'graph' || name === 'plan' ? what : `${name} ${what}`).join('  ·  ');
for (const [id, act] of Object.entries({
  in: () => zoomBy(1.25), out: () => zoomBy(0.8), fit, fold: () => picture.shallower(),
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
if (plan) makePlan();
setMode(picture.mode);
select(-1);
// Of several devices, or of what was measured, it is the time that tells; else the graph.
if (plan) setView(plan.devices.filter(device => device.count).length > 1 || plan.measured ? 'timeline' : 'graph');

// For scripts that look at the page, and for its tests.
window.genie = Object.freeze({
  cy: picture.cy, ready: performance.now() - started, select, gantt,
  // Where a node (or a transfer, by its number) is in the timeline, and at what level it is drawn.
  bar: (id, measured = false, kind = 'steps') => {
    const item = kind === 'steps' ? positionOfId.get(id) : id, room = gantt.canvas.getBoundingClientRect();
    const { row, level } = gantt.drawn.find(each => each.row.kind === kind && each.row.measured === measured && each.row.series.item.has(item));
    const at = row.series.item.get(item), [x, right] = [row.series.start[at], row.series.finish[at]].map(time => gantt.x(time));
    return { x: room.x + (x + right) / 2, y: room.y + row.y + row.h / 2 - gantt.top, width: right - x, level: level.name, depth: level.depth, lane: row.lane.name };
  },
  at: id => {
    const unit = picture.stand[positionOfId.get(id)], place = picture.cy.getElementById(`u${unit}`).renderedPosition(), room = canvas.getBoundingClientRect();
    return { x: room.x + place.x, y: room.y + place.y, shown: unit === positionOfId.get(id) };
  },
});
