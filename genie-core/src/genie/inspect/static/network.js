// Devices and the ways between them: memory, work, and what is sent.

const CARD = { w: 208, h: 98 };
const LABELLED = 16; // more labels than that would hide each other: those of the busiest

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'on') for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

class Network {
  constructor(panel, on) {
    Object.assign(this, { panel, on, chosen: null });
    this.ways = waysOf(plan);
    this.places = placesOf(plan.devices.length);
    this.draw();
  }

  draw() {
    const xs = this.places.map(([x]) => x), ys = this.places.map(([, y]) => y);
    const left = Math.min(...xs) - CARD.w / 2 - 60, top = Math.min(...ys) - CARD.h / 2 - 70;
    const width = Math.max(...xs) + CARD.w / 2 + 60 - left, height = Math.max(...ys) + CARD.h / 2 + 70 - top;
    const picture = svg('svg', { viewBox: `${left} ${top} ${width} ${height}`, preserveAspectRatio: 'xMidYMid meet', role: 'group', 'aria-label': 'Devices and links' });
    // No larger than it can be read at best.
    picture.style.maxWidth = `${width * 1.6}px`;
    picture.style.maxHeight = `${height * 1.6}px`;
    const used = new Set(this.ways.map(way => `${Math.min(way.source, way.target)} ${Math.max(way.source, way.target)}`));
    const quiet = new Set(plan.links.map(([a, b]) => `${Math.min(a, b)} ${Math.max(a, b)}`).filter(pair => !used.has(pair)));
    if (quiet.size <= 60) for (const pair of quiet) picture.append(this.quiet(...pair.split(' ').map(Number)));
    const most = Math.max(...this.ways.map(way => way.bytes), 1);
    const labels = [], busiest = new Set([...this.ways].sort((a, b) => b.busy - a.busy).slice(0, LABELLED));
    for (const way of this.ways) picture.append(this.way(way, most, busiest.has(way) || this.chosen === way.name ? labels : []));
    picture.append(...plan.devices.map(device => this.card(device)), ...labels);
    this.panel.replaceChildren(picture);
    if (!this.ways.length) this.panel.append(element('p', { class: 'quiet' }, 'Nothing is sent: all of it runs on one device.'));
  }

  quiet(a, b) {
    const [[x1, y1], [x2, y2]] = [this.places[a], this.places[b]];
    return svg('line', { x1, y1, x2, y2, class: 'unused' });
  }

  // A curve to the right of the straight line, so that both ways can be seen.
  way(way, most, labels) {
    const [from, to] = [this.places[way.source], this.places[way.target]];
    const dx = to[0] - from[0], dy = to[1] - from[1], far = Math.hypot(dx, dy);
    const [nx, ny] = [-dy / far, dx / far], bow = 26 + 0.08 * far;
    const middle = [(from[0] + to[0]) / 2 + nx * bow, (from[1] + to[1]) / 2 + ny * bow];
    const start = edge(from, middle), end = edge(to, middle);
    const width = 1.5 + 5.5 * Math.sqrt(way.bytes / most), share = plan.makespan ? way.busy / plan.makespan : 0;
    const critical = way.moves.some(move => move.critical);
    const ctrl = [2 * middle[0] - (start[0] + end[0]) / 2, 2 * middle[1] - (start[1] + end[1]) / 2];
    const tip = arrow(ctrl, end, 6 + width), path = `M ${start.join(' ')} Q ${ctrl.join(' ')} ${end.join(' ')}`;
    const text = `${size(way.bytes)} · ${percent(share)}`, wide = text.length * 6.4 + 12;
    labels.push(svg('rect', { x: middle[0] - wide / 2, y: middle[1] - 10, width: wide, height: 20, rx: 4, class: 'under' }),
      svg('text', { x: middle[0], y: middle[1] + 4, class: 'waylabel' }, text));
    return svg('g', {
      class: `way${critical ? ' critical' : ''}${this.chosen === way.name ? ' chosen' : ''}`, tabindex: 0, role: 'button', 'data-way': way.name,
      'aria-label': `${way.name}: ${way.moves.length} values, ${size(way.bytes)}, in use ${percent(share)} of the time`,
      on: this.acts(way.name, () => this.on.way(way), event => this.on.hover([way.name, `${way.moves.length.toLocaleString('en')} values, ${size(way.bytes)}`,
        `${duration(way.busy)}, ${percent(share)} of the time`, linkText(way.source, way.target), critical ? 'on the critical path' : ''], event)),
    }, svg('path', { d: path, class: 'wide' }), svg('path', { d: path, class: 'line', 'stroke-width': width }), svg('polygon', { points: tip }));
  }

  card(device) {
    const [x, y] = this.places[device.index].map((at, axis) => at - (axis ? CARD.h : CARD.w) / 2);
    const busy = plan.makespan ? device.busy / plan.makespan : 0, full = device.have ? device.need / device.have : 0;
    const bar = (at, share, kind) => [
      svg('rect', { x: x + 84, y: y + at, width: CARD.w - 98, height: 8, rx: 2, class: 'empty' }),
      svg('rect', { x: x + 84, y: y + at, width: Math.max(share > 0 ? 1.5 : 0, Math.min(1, share) * (CARD.w - 98)), height: 8, rx: 2, class: kind }),
    ];
    const label = (dy, text, kind = 'quiet', dx = 14) => svg('text', { x: x + dx, y: y + dy, class: kind }, text);
    return svg('g', {
      class: `device${this.chosen === device.id ? ' chosen' : ''}`, tabindex: 0, role: 'button', 'data-device': device.id,
      'aria-label': `${device.id}: ${percent(busy)} busy, ${size(device.need)} of ${size(device.have)}`,
      on: this.acts(device.id, () => this.on.device(device), event => this.on.hover([device.id, `${device.type}, ${device.tflops} TFLOPS${device.bandwidth ? `, ${device.bandwidth} GB/s` : ''}`,
        `${device.count.toLocaleString('en')} nodes, ${duration(device.busy)} of work`], event)),
    }, svg('rect', { x, y, width: CARD.w, height: CARD.h, rx: 8, class: 'card' }),
    svg('rect', { x, y: y + 8, width: 4, height: CARD.h - 16, rx: 2, fill: deviceColor(device) }),
    label(22, clip(device.id, 24), 'name'), label(38, `${clip(device.type, 14)} · ${device.count.toLocaleString('en')} node${device.count === 1 ? '' : 's'}`),
    label(59, `${percent(busy)} busy`), ...bar(52, busy, 'busy'),
    label(75, 'memory'), ...bar(68, full, full > 0.9 ? 'tight' : 'memory'), label(86, `${size(device.need)} of ${size(device.have)}`, 'small', 84));
  }

  acts(name, act, hover) {
    const choose = () => { this.chosen = name; act(); this.draw(); };
    return {
      click: choose, pointermove: hover, pointerleave: () => this.on.hover(null),
      keydown: event => {
        if (event.key !== 'Enter' && event.key !== ' ') return;
        event.preventDefault();
        choose();
        [...this.panel.querySelectorAll('[tabindex]')].find(each => [each.dataset.device, each.dataset.way].includes(name)).focus();
      },
    };
  }
}

function deviceColor(device) {
  const mode = data.modes.find(each => each.name === 'device');
  const row = mode && mode.words.find(([name]) => name === device.id);
  return row ? row[1] : data.unknown;
}

// Two side by side, more of them on an ellipse.
function placesOf(number) {
  if (number <= 3) return Array.from({ length: number }, (_, i) => [i * 440, 0]);
  const around = Math.max(230, number * 38);
  return Array.from({ length: number }, (_, i) => {
    const angle = Math.PI * (2 * i / number - 0.5) - (number === 4 ? Math.PI / 4 : 0);
    return [1.55 * around * Math.cos(angle), around * Math.sin(angle)];
  });
}

// Where the line from a card's middle to a point leaves the card.
function edge([x, y], [toX, toY]) {
  const dx = toX - x, dy = toY - y, share = Math.min((CARD.w / 2 + 5) / Math.abs(dx || 1e-9), (CARD.h / 2 + 5) / Math.abs(dy || 1e-9));
  return [x + dx * share, y + dy * share];
}

function arrow([fromX, fromY], [x, y], long) {
  const far = Math.hypot(x - fromX, y - fromY) || 1, ux = (x - fromX) / far, uy = (y - fromY) / far;
  const back = [x - ux * long, y - uy * long], half = long * 0.45;
  return [[x + ux * 3, y + uy * 3], [back[0] - uy * half, back[1] + ux * half], [back[0] + uy * half, back[1] - ux * half]].map(point => point.join(',')).join(' ');
}
