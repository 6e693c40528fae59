// The table of all nodes. Only the rows in sight exist.

const ROW = 25;

class Table {
  constructor(on) {
    this.on = on;
    this.grid = document.getElementById('grid');
    this.rows = document.getElementById('rows');
    this.count = document.getElementById('count');
    this.selected = -1;
    this.order = { column: 0, down: false };
    const word = name => {
      const mode = data.modes.find(each => each.name === name);
      return { name, title: name[0].toUpperCase() + name.slice(1), mode, of: node => wordName(mode, node.words[mode.index]), known: node => node.words[mode.index] >= 0 };
    };
    this.columns = [
      { title: '#', of: node => node.id, number: true },
      { title: 'Operator', of: node => node.op },
      { title: 'Module', of: node => node.module },
      { title: 'Role', of: node => node.role },
      word('phase'), word('modality'), word('residency'),
      ...(plan ? [
        { title: 'Device', of: node => plan.devices[plan.steps[node.position].device].id },
        { title: 'Time', of: node => plan.steps[node.position].finish - plan.steps[node.position].start, number: true, text: duration },
      ] : []),
      { title: 'FLOP', of: node => node.flops, number: true, text: value => value ? si(value) : value === 0 ? '0' : '' },
      { title: 'Bytes', of: node => node.bytes, number: true, text: value => value ? si(value, 'B') : value === 0 ? '0' : '' },
    ];
    document.body.classList.toggle('plan', !!plan);
    this.makeHead();
    for (const node of nodes) {
      node.haystack = [`#${node.id}`, node.op, node.module, node.type, node.role, node.source,
        ...data.modes.filter(mode => node.words[mode.index] >= 0).map(mode => wordName(mode, node.words[mode.index]))]
        .join('\n').toLowerCase();
    }
    this.grid.addEventListener('scroll', () => this.render());
    this.grid.addEventListener('keydown', event => this.key(event));
    new ResizeObserver(() => this.render()).observe(this.grid);
    this.search('');
  }

  makeHead() {
    const head = document.getElementById('head');
    this.columns.forEach((column, number) => head.append(element('div',
      { role: 'columnheader', class: column.number ? 'number' : '' },
      element('button', { type: 'button', on: { click: () => this.sort(number) } }, column.title))));
    this.head = [...head.children];
  }

  // All words of the text must be found; # and a number is one node.
  search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const exact = words.length === 1 && /^#\d+$/.test(words[0]) ? Number(words[0].slice(1)) : -1;
    this.found = exact >= 0 ? nodes.filter(node => node.id === exact)
      : nodes.filter(node => words.every(word => node.haystack.includes(word)));
    this.matching = words.length ? new Set(this.found.map(node => node.position)) : null;
    const all = nodes.length.toLocaleString('en');
    this.count.textContent = words.length ? `${this.found.length.toLocaleString('en')} of ${all} nodes` : `${all} nodes`;
    this.grid.scrollTop = 0;
    this.arrange();
  }

  sort(column) {
    this.order = { column, down: this.order.column === column && !this.order.down };
    this.arrange();
  }

  arrange() {
    const { column, down } = this.order, { of, number, known } = this.columns[column];
    const empty = node => known ? !known(node) : of(node) === null || of(node) === '';
    // What is unknown stays at the end, whichever the direction.
    this.found.sort((a, b) => {
      const missing = empty(a) - empty(b);
      if (missing) return missing;
      const order = empty(a) ? 0 : number ? of(a) - of(b) : of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0;
      return (down ? -order : order) || a.position - b.position;
    });
    this.head.forEach((cell, index) => {
      cell.setAttribute('aria-sort', index !== column ? 'none' : down ? 'descending' : 'ascending');
      cell.firstChild.textContent = this.columns[index].title + (index !== column ? '' : down ? ' ↓' : ' ↑');
    });
    this.rows.style.height = `${this.found.length * ROW}px`;
    this.grid.setAttribute('aria-rowcount', this.found.length + 1);
    this.render();
  }

  render() {
    const top = Math.max(0, Math.floor(this.grid.scrollTop / ROW) - 4);
    const end = Math.min(this.found.length, top + Math.ceil(this.grid.clientHeight / ROW) + 8);
    this.rows.replaceChildren(...this.found.slice(top, end).map((node, index) => this.row(node, top + index)));
  }

  row(node, index) {
    const made = element('div', {
      class: 'row', role: 'row', id: `row-${node.id}`, 'aria-rowindex': index + 2,
      'aria-selected': node.position === this.selected, on: { click: () => this.on.select(node.position) },
    });
    made.style.top = `${index * ROW}px`;
    for (const { of, number, text, mode, known } of this.columns) {
      const value = of(node), shown = text ? text(value) : String(value);
      if (!mode) made.append(element('div', { role: 'gridcell', class: number ? 'number' : '', title: shown }, shown));
      else made.append(element('div', { role: 'gridcell', class: known(node) ? 'word' : 'word quiet' },
        element('i', { class: 'swatch', color: wordColor(mode, node.words[mode.index]) }), element('span', {}, known(node) ? shown : '–')));
    }
    return made;
  }

  select(position, scroll = true) {
    this.selected = position;
    const index = this.found.findIndex(node => node.position === position);
    if (index >= 0 && scroll) {
      const top = index * ROW, view = this.grid.clientHeight - ROW - 4;
      if (top < this.grid.scrollTop) this.grid.scrollTop = top;
      else if (top + ROW > this.grid.scrollTop + view) this.grid.scrollTop = top + ROW - view;
    }
    this.render();
    if (index >= 0) this.grid.setAttribute('aria-activedescendant', `row-${nodes[position].id}`);
    else this.grid.removeAttribute('aria-activedescendant');
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.grid.clientHeight / ROW) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.target !== this.grid || !this.found.length) return;
    event.preventDefault();
    const now = this.found.findIndex(node => node.position === this.selected);
    const next = now < 0 ? 0 : Math.min(this.found.length - 1, Math.max(0, now + steps[event.key]));
    this.on.select(this.found[next].position);
  }
}
