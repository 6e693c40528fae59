// The timeline's drawing: a lane per device and per way between two, bars for what they do, on a canvas of its own.

const GUTTER = 148, AXIS = 44, LANE_GAP = 9;
const HEIGHT = { steps: 28, sent: 17, bars: 20 };

class Painting {
  theme() {
    const style = getComputedStyle(document.documentElement);
    this.ink = Object.fromEntries(['paper', 'surface', 'line', 'text', 'quiet', 'accent', 'critical', 'box']
      .map(name => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.rows.forEach(row => row.fill.clear());
  }

  draw() {
    if (this.waiting || !this.width) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  paint() {
    const { pen, ink, width, height } = this;
    if (!width) return;
    const from = this.time(GUTTER), to = this.time(width);
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = ink.surface;
    pen.fillRect(0, 0, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, AXIS, width - GUTTER, height - AXIS);
    pen.clip();
    pen.translate(0, -this.top);
    const step = this.grid(from, to);
    pen.fillStyle = ink.box;
    for (const lane of this.lanes) pen.fillRect(GUTTER, lane.y - 3, width, lane.h + 4);
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) this.upright(Math.round(this.x(at)) + 0.5, this.top, this.top + height, ink.line);
    this.drawn = this.rows.map(row => this.bars(row, from, to));
    this.crossing(from, to);
    pen.restore();
    this.axis(from, to, step);
    this.names();
  }

  grid(from, to) {
    const rough = (to - from) * 90 / this.room, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find(times => times * power >= rough);
    return Math.max(step, 1);
  }

  axis(from, to, step) {
    const { pen, ink } = this;
    pen.fillStyle = ink.surface;
    pen.fillRect(0, 0, this.width, AXIS);
    pen.font = '11px system-ui, sans-serif';
    pen.textBaseline = 'middle';
    pen.textAlign = 'center';
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = Math.round(this.x(at)) + 0.5;
      this.upright(x, AXIS - 5, AXIS, ink.line);
      pen.fillStyle = ink.quiet;
      if (x > GUTTER + 18 && x < this.width - 18) pen.fillText(moment(at, step), x, AXIS - 15);
    }
    const end = this.x(plan.makespan);
    if (end < GUTTER || end > this.width) return;
    pen.setLineDash([3, 3]);
    this.upright(end, AXIS - 5, this.height, ink.quiet);
    pen.setLineDash([]);
  }

  upright(x, from, to, color) {
    const { pen } = this;
    pen.strokeStyle = color;
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(x, from);
    pen.lineTo(x, to);
    pen.stroke();
  }

  names() {
    const { pen, ink } = this;
    pen.fillStyle = ink.surface;
    pen.fillRect(0, AXIS, GUTTER, this.height);
    pen.save();
    pen.beginPath();
    pen.rect(0, AXIS, GUTTER - 6, this.height);
    pen.clip();
    pen.translate(0, -this.top);
    pen.textAlign = 'left';
    for (const lane of this.lanes) {
      const [row, other] = lane.rows, middle = row.y + row.h / 2;
      const tall = row.kind === 'steps';
      pen.font = `${tall ? '600 ' : ''}12px system-ui, sans-serif`;
      pen.fillStyle = tall ? ink.text : ink.quiet;
      pen.fillText(this.clipped(lane.name, GUTTER - 22 - (tall ? 58 : 0)), 12, middle);
      pen.font = '11px system-ui, sans-serif';
      pen.fillStyle = ink.quiet;
      pen.textAlign = 'right';
      if (tall) pen.fillText(lane.note, GUTTER - 12, middle);
      if (other && other.h > 10) pen.fillText('measured', GUTTER - 12, other.y + other.h / 2);
      pen.textAlign = 'left';
    }
    pen.restore();
    pen.strokeStyle = ink.line;
    pen.beginPath();
    pen.moveTo(GUTTER - 0.5, 0);
    pen.lineTo(GUTTER - 0.5, this.height);
    pen.moveTo(0, AXIS - 0.5);
    pen.lineTo(this.width, AXIS - 0.5);
    pen.stroke();
  }

  clipped(text, room) {
    const { pen } = this;
    if (pen.measureText(text).width <= room) return text;
    let most = Math.floor(text.length * room / pen.measureText(text).width);
    while (most > 1 && pen.measureText(`${text.slice(0, most)}…`).width > room) most -= 1;
    return most > 1 ? `${text.slice(0, most)}…` : '';
  }

  // The bars of a row; what was drawn, for pointing at it.
  bars(row, from, to) {
    const { pen, ink } = this, { series } = row;
    const level = series.choose(from, to, this.scale);
    const [low, high] = level.visible(from, to), sums = row.sums;
    pen.font = '11px system-ui, sans-serif';
    pen.textBaseline = 'middle';
    pen.textAlign = 'left';
    let last = -Infinity;
    for (let group = low; group < high; group++) {
      const start = level.start(group), finish = level.finish(group);
      const x = Math.max(this.x(start), GUTTER - 4), right = Math.min(this.x(finish), this.width + 4);
      if (right <= last) continue; // hidden below its neighbours
      const wide = Math.max(row.kind === 'steps' ? 1 : 2, right - x - (right - x > 3 ? 0.75 : 0));
      last = Math.max(right, x + 1);
      const first = level.first[group], end = level.end(group);
      pen.globalAlpha = sums && sums[end] === sums[first] ? 0.16 : 1;
      pen.fillStyle = this.fill(row, level, group);
      pen.fillRect(x, row.y, wide, row.h);
      if (row.measured && row.kind !== 'bars' && !this.known(row, level, group)) this.hatch(x, row.y, wide, row.h);
      if (!row.measured && this.critical(row, level, group)) {
        const high = row.kind === 'sent' && wide < 5 ? row.h : 3; // what is narrow would not be seen to be marked
        pen.fillStyle = ink.critical;
        pen.fillRect(x, row.y + row.h - high, wide, high);
      }
      if (wide > 26 && row.h > 12) {
        pen.fillStyle = ink.text;
        const full = this.label(row, level, group), short = level.name === 'module' && this.pen.measureText(full).width > wide - 8;
        const text = this.clipped(short ? full.split('.')[0] : full, wide - 8);
        if (text) pen.fillText(text, x + 4, row.y + row.h / 2 - (row.kind === 'steps' && !row.measured ? 1 : 0));
      }
      if (this.chosen(row, level, group)) {
        pen.strokeStyle = ink.accent;
        pen.lineWidth = 2;
        pen.strokeRect(x - 0.5, row.y - 0.5, Math.max(3, wide + 1), row.h + 1);
      }
      pen.globalAlpha = 1;
    }
    return { row, level, low, high };
  }

  fill(row, level, group) {
    if (row.kind !== 'steps') {
      const stage = row.kind === 'bars' ? plan.measured.bars[level.ids(group)[0]].stage : -1;
      if (stage < 0) return this.on.tint(row.kind === 'bars' && !row.lane.name.includes(' → ') ? data.unknown : '#7d8896', 0.5);
      return this.color(row, `stage ${stage}`, plan.stages[stage]);
    }
    return this.color(row, `${level.name} ${level.depth} ${group}`, level.ids(group));
  }

  // The colour of what most of its time is, for the way of colouring in use.
  color(row, key, positions) {
    const mode = this.on.mode();
    const known = `${mode.name} ${key}`;
    if (!row.fill.has(known)) {
      const shares = new Map();
      for (const position of positions) {
        const step = plan.steps[position];
        count(shares, wordOf(mode, step.position), step.finish - step.start + 1);
      }
      const [word] = [...shares].sort((a, b) => b[1] - a[1])[0];
      row.fill.set(known, this.on.tint(wordColor(mode, word), 0.55));
    }
    return row.fill.get(known);
  }

  hatch(x, y, wide, high) {
    const { pen } = this;
    if (wide < 4) return;
    pen.save();
    pen.beginPath();
    pen.rect(x, y, wide, high);
    pen.clip();
    pen.strokeStyle = this.ink.surface;
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (let at = Math.max(x, 0) - high - (Math.max(x, 0) % 6); at < x + wide; at += 6) {
      pen.moveTo(at, y + high);
      pen.lineTo(at + high, y);
    }
    pen.stroke();
    pen.restore();
  }

  label(row, level, group) {
    const id = level.ids(group)[0];
    if (row.kind === 'sent') return `%${plan.transfers[id].value}`;
    if (row.kind === 'bars') return plan.measured.bars[id].what;
    if (level.name === 'stage') return `stage ${plan.steps[id].stage + 1}`;
    if (level.name === 'step') return `${plan.steps[id].again ? '↻ ' : ''}${nodeOf(id).short}`;
    const parts = nodeOf(id).module.split('.').slice(0, level.depth);
    return parts.slice(-2).join('.') || nodeOf(id).short;
  }

  critical(row, level, group) {
    if (row.kind === 'sent') return plan.transfers[level.ids(group)[0]].critical;
    return row.kind === 'steps' && level.ids(group).some(position => plan.steps[position].critical);
  }

  known(row, level, group) {
    return row.kind === 'steps' && level.ids(group).some(position => plan.measured.known(position));
  }

  chosen(row, level, group) {
    const { mark, selected } = this, id = level.ids(group)[0];
    if (mark && mark.row.kind === row.kind && mark.row.lane === row.lane && mark.level.name === level.name && mark.level.depth === level.depth && mark.id === id) return true;
    if (mark && mark.transfer !== undefined && row.kind === 'sent' && mark.transfer === id) return true;
    if (selected < 0 || row.kind !== 'steps' || !isNode(selected)) return false;
    const item = row.series.item.get(selected);
    return item !== undefined && item >= level.first[group] && item < level.end(group);
  }

  crossing(from, to) {
    const { pen, ink } = this;
    const seen = this.path.filter(({ at }) => at >= from && at <= to);
    if (seen.length > this.room / 12) return; // they would hide all else
    pen.strokeStyle = ink.critical;
    pen.globalAlpha = 0.75;
    pen.lineWidth = 1.25;
    pen.beginPath();
    for (const { at, from: one, to: other } of seen) {
      const x = Math.round(this.x(at)) + 0.5, [a, b] = [one.rows[0], other.rows[0]];
      pen.moveTo(x, a.y < b.y ? a.y + a.h - 2 : a.y);
      pen.lineTo(x, a.y < b.y ? b.y : b.y + b.h - 2);
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }
}
