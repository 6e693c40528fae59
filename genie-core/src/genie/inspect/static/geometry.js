// Where units are, for the boxes that are open. Rows and places in them come with the data; sizes are added up here,
// inner boxes first. Many rows are set in columns, as in a newspaper, so that a box is about as wide as a screen.

const GAP_X = 16, GAP_Y = 20, PAD = 13, COLUMN_GAP = 32, SHAPE = 1.75, SHORT = 560;
const CLOSED_FONT = 17;

function geometry(open) {
  const width = new Float64Array(unitCount), height = new Float64Array(unitCount);
  const x = new Float64Array(unitCount), y = new Float64Array(unitCount); // of top left corners, first within the box
  const font = new Float64Array(boxes.length);
  const shown = visibleBoxes(open);
  for (let unit = 0; unit < firstBox; unit++) [width[unit], height[unit]] = leafSize(unit);
  for (let number = boxes.length - 1; number >= 0; number--) {
    const unit = firstBox + number;
    if (!shown[number]) continue;
    if (!open.has(number)) [width[unit], height[unit]] = closedSize(boxes[number]);
    else pack(number, { width, height, x, y, font });
  }
  x[firstBox] = y[firstBox] = 0;
  for (let number = 0; number < boxes.length; number++) {
    if (!shown[number] || !open.has(number)) continue;
    const unit = firstBox + number;
    for (const inner of boxes[number].units) {
      x[inner] += x[unit];
      y[inner] += y[unit];
    }
  }
  return { width, height, x, y, font, shown };
}

// Boxes all of whose ancestors are open.
function visibleBoxes(open) {
  const shown = new Uint8Array(boxes.length);
  boxes.forEach((box, number) => { shown[number] = box.parent < 0 || (shown[box.parent] && open.has(box.parent)) ? 1 : 0; });
  return shown;
}

function leafSize(unit) {
  const [first, second] = leafLabel(unit);
  return [Math.max(60, Math.max(first.length, second.length) * 7.3 + 18), second ? 42 : 28];
}

function leafLabel(unit) {
  const node = unitOf(unit);
  if (isNode(unit)) return [clip(node.short, 24), clip(node.role.replaceAll('_', ' ') || node.called, 24)];
  const name = inputOf.get(node.value).name;
  return [clip(name || `%${node.value}`, 24, true), clip(values[node.value][0], 24)];
}

function closedLabel(box) {
  const title = `${clip(box.name, 22)}${box.type ? `  ${clip(box.type, 22)}` : ''}`;
  const size = `${box.nodes.toLocaleString('en')} node${box.nodes === 1 ? '' : 's'}`;
  return [title, box.flops ? `${size} · ${si(box.flops, 'FLOP')}` : size];
}

function closedSize(box) {
  return [Math.max(190, Math.max(...closedLabel(box).map(line => line.length)) * CLOSED_FONT * 0.57 + 30), 62];
}

// The end of a dotted name says more than its beginning.
function clip(text, most, end = false) {
  return text.length <= most ? text : end ? `…${text.slice(1 - most)}` : `${text.slice(0, most - 1)}…`;
}

function pack(number, { width, height, x, y, font }) {
  const unit = firstBox + number, lines = lined(boxes[number].units, width, height);
  const sum = lines.reduce((total, line) => total + line.height + GAP_Y, 0);
  let best = null;
  for (let columns = 1; columns <= Math.max(1, Math.min(lines.length, 200)); columns++) {
    const made = inColumns(lines, sum / columns), shape = made.width / made.height;
    const off = Math.abs(Math.log(shape / SHAPE));
    if (!best || off < best.off) best = { ...made, off };
    if (shape > SHAPE || columns === 1 && made.height <= SHORT) break;
  }
  const size = Math.max(13, Math.min(900, 0.021 * Math.max(best.width, best.height)));
  const title = number ? size * 1.9 : 0, box = boxes[number];
  font[number] = size;
  const heading = (box.name.length + box.type.length + 4) * size * 0.62;
  width[unit] = Math.max(best.width, Math.min(heading, 40 * size)) + 2 * PAD;
  height[unit] = best.height + title + 2 * PAD - (number ? PAD * 0.4 : 0);
  const shift = (width[unit] - 2 * PAD - best.width) / 2;
  for (const { line, left, top, room } of best.placed) {
    let at = PAD + shift + left + (room - line.width) / 2;
    for (const inner of line.units) {
      x[inner] = at;
      y[inner] = title + PAD * (number ? 0.6 : 1) + top + (line.height - height[inner]) / 2;
      at += width[inner] + GAP_X;
    }
  }
}

// Rows; one that is too wide is broken into several lines.
function lined(units, width, height) {
  const rows = new Map();
  let area = 0;
  for (const unit of units) {
    const row = unitOf(unit).row;
    if (!rows.has(row)) rows.set(row, []);
    rows.get(row).push(unit);
    area += (width[unit] + GAP_X) * (height[unit] + GAP_Y);
  }
  const widest = Math.max(560, Math.sqrt(area * SHAPE));
  const lines = [];
  for (const row of [...rows.keys()].sort((a, b) => a - b)) {
    let line = null;
    for (const unit of rows.get(row).sort((a, b) => unitOf(a).column - unitOf(b).column)) {
      if (!line || line.width + GAP_X + width[unit] > widest) lines.push(line = { units: [], width: -GAP_X, height: 0 });
      line.units.push(unit);
      line.width += GAP_X + width[unit];
      line.height = Math.max(line.height, height[unit]);
    }
  }
  return lines;
}

function inColumns(lines, target) {
  const columns = [];
  let column = null;
  for (const line of lines) {
    if (!column || column.height + line.height / 2 > target) columns.push(column = { lines: [], width: 0, height: 0 });
    column.lines.push([line, column.height]);
    column.width = Math.max(column.width, line.width);
    column.height += line.height + GAP_Y;
  }
  let left = 0, tallest = 0;
  const placed = [];
  for (const { lines: its, width, height } of columns) {
    for (const [line, top] of its) placed.push({ line, left, top, room: width });
    left += width + COLUMN_GAP;
    tallest = Math.max(tallest, height - GAP_Y);
  }
  return { placed, width: Math.max(0, left - COLUMN_GAP), height: Math.max(0, tallest) };
}
