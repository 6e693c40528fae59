// The graph as the page was given it, with what follows from it.

const data = JSON.parse(document.getElementById('data').textContent);
const nodes = data.nodes, values = data.values, boxes = data.boxes;

// Units are numbered: operators by their position, then drawn inputs, then boxes.
const firstInput = nodes.length, firstBox = nodes.length + data.drawn.length, unitCount = firstBox + boxes.length;
const isNode = unit => unit < firstInput;
const isBox = unit => unit >= firstBox;
const unitOf = unit => isNode(unit) ? nodes[unit] : isBox(unit) ? boxes[unit - firstBox] : data.drawn[unit - firstInput];
const boxOf = unit => isBox(unit) ? boxes[unit - firstBox].parent : unitOf(unit).box;

const inputOf = new Map(data.inputs.map(([value, name, facts]) => [value, { name, facts }]));
const outputs = new Set(data.outputs);
const maker = new Map(), users = new Map(), positionOfId = new Map();

nodes.forEach((node, position) => {
  node.position = position;
  positionOfId.set(node.id, position);
  for (const value of node.makes) maker.set(value, position);
  for (const value of new Set(node.takes)) {
    if (!users.has(value)) users.set(value, []);
    users.get(value).push(position);
  }
  node.short = node.op.replace(/^aten::/, '').replace(/\.(default|Tensor)$/, '');
});

// Boxes know their units, and what all below them adds up to: per mode, the number of nodes by word.
boxes.forEach(box => Object.assign(box, { units: [], nodes: 0, flops: 0, bytes: 0, words: data.modes.map(() => new Map()) }));
for (let unit = 0; unit < unitCount; unit++) if (boxOf(unit) >= 0) boxes[boxOf(unit)].units.push(unit);
const modeIndex = name => ['phase', 'modality', 'residency', 'device'].indexOf(name);
data.modes.forEach(mode => { mode.index = modeIndex(mode.name); });

for (const node of nodes) {
  const box = boxes[node.box];
  box.nodes += 1;
  box.flops += node.flops || 0;
  box.bytes += node.bytes || 0;
  data.modes.forEach((mode, number) => count(box.words[number], node.words[mode.index], 1));
}
for (let number = boxes.length - 1; number > 0; number--) {
  const box = boxes[number], parent = boxes[box.parent];
  parent.nodes += box.nodes;
  parent.flops += box.flops;
  parent.bytes += box.bytes;
  box.words.forEach((words, mode) => words.forEach((times, word) => count(parent.words[mode], word, times)));
}

function count(map, key, times) {
  map.set(key, (map.get(key) || 0) + times);
}

function wordOf(mode, unit) {
  return unitOf(unit).words[mode.index];
}

function si(number, unit = '') {
  for (const [scale, prefix] of [[1e15, 'P'], [1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
    if (number >= scale * 0.9995) return `${Number((number / scale).toPrecision(3))} ${prefix}${unit}`;
  }
  return `${number} ${unit}`.trim();
}

// All that is shown is set as text: names come from files nobody checked.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'on') for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name === 'class') made.className = value;
    else if (name === 'color') made.style.backgroundColor = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
