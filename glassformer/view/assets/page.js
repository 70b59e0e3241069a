// The page's sections, drawn from the JSON with the pieces of parts.js.

// ---- What the numbers say, in words ----

const componentWords = {
  attn: (c) => `attention of block ${c.layer}`,
  mlp: (c) => `MLP of block ${c.layer}`,
  embed: () => 'the last token’s own embedding',
  bias: () => 'constants (biases)',
};
const wordsOf = (component) => componentWords[component.kind]?.(component) ?? component.name;

// Where one patch alone recovers at least half: [[position, [layers]], …] in the prompt's order.
function carriers() {
  const found = new Map();
  data.patching.recovered.forEach((row, layer) => row.forEach((value, position) => {
    if (isNumber(value) && value >= 0.5) found.set(position, [...(found.get(position) ?? []), layer]);
  }));
  return [...found].sort((a, b) => a[1][0] - b[1][0] || a[0] - b[0]);
}

function lensFinding() {
  const ranks = data.lens.rank.map((row) => row[last]);
  const layers = data.lens.layers;
  let from = ranks.length;
  while (from > 0 && ranks[from - 1] === 0) from -= 1;
  const start = `Read out right after the input, ${quoted(answer.token)} has rank ${grouped(ranks[0])} of ${
      grouped(data.model.d_vocab)} tokens (0 is the top)`;
  if (from === ranks.length) return `${start}; at the end, rank ${grouped(ranks.at(-1))}.`;
  if (from === 0) return `${quoted(answer.token)} is the top choice from the input to the end.`;
  return from === ranks.length - 1 ?
      `${start}; it becomes the top choice only after block ${layers[from]}, the last.` :
      `${start}; it becomes the top choice after block ${layers[from]} (the last is ${layers.at(-1)}) and stays it.`;
}

function attributionFinding() {
  const sorted = [...data.attribution.components].filter((c) => isNumber(c.logit)).sort((a, b) => b.logit - a.logit);
  if (sorted.length === 0) return null;
  const name = (c) => `${wordsOf(c)} (${signed(c.logit)})`;
  const against = sorted.at(-1).logit < 0 ? `; most is taken from it by ${name(sorted.at(-1))}` : '';
  return `Most is added to its score (logit ${signed(answer.logit)}) by ${sorted.slice(0, 2).map(name).join(' and ')}${against}.`;
}

function headFinding() {
  const head = data.heads[0];
  if (!head) return null;
  const looks = strongestKeys(head)[0];
  return `The single attention head that does most is head ${head.head} of block ${head.layer} (${
             signed(head.logit)})` +
      (looks ? `; from the last token it looks most at ${place(looks[0])} (${percent(looks[1])}).` : '.');
}

// Shares are taken of the difference between the runs: where that is small, they are mostly chance.
function smallDifference() {
  const {answer: clean, versus_answer: other, clean_difference, corrupted_difference} = data.patching;
  const difference = Math.abs(clean_difference - corrupted_difference);
  if (!isNumber(clean_difference) || !isNumber(corrupted_difference) || difference >= 1) return null;
  return `The two prompts differ by only ${difference.toPrecision(1)} in logit(${quoted(clean.token)}) − logit(${
      quoted(other.token)}), so shares of that say little; other tokens may tell more.`;
}

function patchFinding() {
  if (!data.patching) return null;
  const small = smallDifference();
  if (small) return small;
  const found = carriers();
  if (found.length === 0) return 'No single place, patched alone, turns the second prompt’s answer at least halfway.';
  const parts = found.slice(0, 4).map(
      ([position, layers]) => `${place(position)} (before block${layers.length > 1 ? 's' : ''} ${
          spans(layers.map((l) => Number(data.patching.layers[l])))})`);
  return `What makes the difference to the second prompt is carried at ${parts.join(', then at ')}${
      found.length > 4 ? ', …' : ''}.`;
}

function strongestKeys(head, count = 3) {
  const weights = head.pattern.at(-1) ?? [];
  return weights.map((weight, key) => [key, weight]).sort((a, b) => size(b[1]) - size(a[1])).slice(0, count);
}

// ---- Sections ----

// What the reader may have meant: "Paris" and " Paris" are two tokens.
function spacedTwin(token, scores) {
  const twin = scores.find((score) => score.token === ` ${token}`);
  return twin &&
      ` ${quoted(twin.token)}, with a space before it, is another token, which has ${percent(twin.probability)}.`;
}

// The second prompt's likeliest token is what one expects the answer to be compared with; says so where it is not.
function comparedToken() {
  const {answer: clean, versus_answer: other} = data.patching;
  const top = data.versus_next_tokens[0];
  if (!top || top.id === other.id) return `makes the model answer ${quoted(other.token)}.`;
  return `makes the model answer ${quoted(top.token)}${top.id === clean.id ? ' too' : ''}; the comparison is with ${
      quoted(other.token)}, which has ${percent(other.probability)} there.${
      spacedTwin(other.token, data.versus_next_tokens) ?? ''}`;
}

function drawHeader() {
  const model = data.model;
  const top = data.next_tokens[0];
  report.append(el('p', {class: 'prompt'}, 'Prompt: ', el('bdi', {}, quotedText(data.prompt.text))));
  report.append(
      el('h1', {},
         top ? `${visible(model.name, ' ')} answers ${quoted(top.token)} with ${percent(top.probability)} probability` :
               visible(model.name, ' ')));
  if (top && top.id !== answer.id) {
    report.append(
        p(`This page explains another token: ${quoted(answer.token)}, which has ${percent(answer.probability)}.`,
          spacedTwin(answer.token, data.next_tokens)));
  }
  report.append(
      el('p', {class: 'soft small'},
         `Architecture ${visible(model.architecture)}: ${model.n_layers} blocks (layers), each with ${
             model.n_heads} attention heads ` +
             `(${model.n_kv_heads} for keys and values) and an MLP; ${
                 grouped(model.d_model)} numbers per token (d_model); ` +
             `${grouped(model.n_parameters)} parameters; computed in ${visible(model.dtype)}.`));
  report.append(
      p('This page shows what happens inside the model between the prompt and its next token. ',
        'It was written by Glassformer, which runs language models with every number in the open.'));
  const findings = [
    ['lens', lensFinding()], ['attribution', attributionFinding()], ['patching', patchFinding()],
    ['patterns', headFinding()]
  ].filter(([, text]) => text);
  section(
      'short', 'In short',
      el('ul', {class: 'short'},
         ...findings.map(([id, text]) => el('li', {}, text, ' ', el('a', {href: `#${id}`}, 'Details')))));
}

function chips(prompt, other, label) {
  return el('ol', {class: 'chips', 'aria-label': label}, ...prompt.tokens.map((token, i) => {
    const differs = other && token !== other.tokens[i];
    return el(
        'li', {class: differs && 'differs', 'data-tip': `position ${i}\ntoken ${visible(token)}\nid ${prompt.ids[i]}`},
        el('small', {}, String(i)), tokenSpan(token), el('small', {}, String(prompt.ids[i])));
  }));
}

function drawTokens() {
  const versus = data.versus;
  section(
      'tokens', 'The tokens',
      p('A language model reads its prompt as ', em('tokens'),
        `: pieces of text from a fixed list of ${grouped(data.model.d_vocab)}. ` +
            'Above each token is its position, below it its number in that list. “·” stands for a space, “⏎” for a line break. ' +
            'Most words begin with their space: “ the” and “the” are two tokens.'),
      versus && el('h3', {}, 'The prompt'), chips(data.prompt, versus, 'The prompt’s tokens'),
      versus && el('h3', {}, 'The second prompt, to compare with'),
      versus && chips(versus, data.prompt, 'The second prompt’s tokens'),
      versus && el('p', {class: 'small soft'}, 'Tokens in which the two differ are marked.'));
}

function scoreTable(scores, label) {
  const body = el('tbody');
  for (const score of scores) {
    const fill = el('span', {class: 'bar'});
    fill.style.width = `${isNumber(score.probability) ? score.probability * 100 : 0}%`;
    body.append(
        el('tr', {
          'data-tip': `token ${visible(score.token)}, id ${score.id}\nprobability ${exact(score.probability)}\nlogit ${
              exact(score.logit)}`
        },
           el('th', {scope: 'row'}, tokenSpan(score.token)), el('td', {class: 'number'}, percent(score.probability)),
           el('td', {class: 'track', 'aria-hidden': 'true'}, fill), el('td', {class: 'number'}, signed(score.logit))));
  }
  const head =
      el('tr', {}, el('th', {scope: 'col'}, 'token'), el('th', {scope: 'col', class: 'number'}, 'probability'),
         el('td', {}), el('th', {scope: 'col', class: 'number'}, 'logit'));
  return el('table', {class: 'bars', 'aria-label': label}, el('thead', {}, head), body);
}

function drawNextTokens() {
  const versus = data.versus;
  const column = (title, scores) =>
      el('div', {}, versus && el('h3', {}, title), scrollBox(title, scoreTable(scores, title)));
  section(
      'next', 'The most likely next tokens',
      p('After the last token, the model scores every token of its list. The score is the ', em('logit'),
        ': a number without a unit; only differences between logits matter. Turned into shares that sum to 100 %, ' +
            'the scores are the probabilities of what comes next.'),
      el('div', {class: versus && 'pair'}, column('After the prompt', data.next_tokens),
         versus && column('After the second prompt', data.versus_next_tokens)));
}

const lensModes = {
  top: {
    label: 'top token’s probability',
    legend: ['0 %', '100 %', 'probability of the cell’s top token'],
    number: (r, c) => percent(data.lens.top[r]?.[c]?.probability),
    value: (r, c) => data.lens.top[r]?.[c]?.probability
  },
  answer: {
    label: 'answer’s probability',
    legend: ['0 %', '100 %', 'probability of the answer'],
    number: (r, c) => percent(data.lens.probability[r]?.[c]),
    value: (r, c) => data.lens.probability[r]?.[c]
  },
  rank: {
    label: 'answer’s rank',
    legend: ['last of all tokens', 'rank 0', 'rank of the answer, logarithmic'],
    number: (r, c) => grouped(data.lens.rank[r]?.[c]),
    value: (r, c) => climbed(data.lens.rank[r]?.[c])
  },
};
const climbed = (rank) => (isNumber(rank) ? 1 - Math.log1p(rank) / Math.log(Math.max(data.model.d_vocab, 2)) : null);

function lensTable(mode) {
  const {number, value} = lensModes[mode];
  return heatTable({
    kind: 'lens',
    scale: 'share',
    corner: 'after',
    label: 'Logit lens, layer by position',
    columns: tokens.map((_, c) => tokenHead(c)),
    rows: data.lens.layers,
    cell: (r, c) => ({
      value: value(r, c),
      hit: data.lens.top[r]?.[c]?.id === answer.id,
      content: el('span', {}, tokenSpan(data.lens.top[r]?.[c]?.token ?? ''), el('span', {}, number(r, c))),
    }),
    tip: (r, c) => {
      const top = data.lens.top[r]?.[c];
      const topLines = top ?
          [
            `top token: ${visible(top.token)} (id ${top.id})`, `– probability ${exact(top.probability)}`,
            `– logit ${exact(top.logit)}`
          ] :
          [];
      return [
        `${afterLayer(r)}, position ${c} (${visible(tokens[c])})`, ...topLines, `answer: ${visible(answer.token)}`,
        `– probability ${exact(data.lens.probability[r]?.[c])}`, `– rank ${exact(data.lens.rank[r]?.[c])}`
      ].join('\n');
    },
  });
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A line over the layers at the last position; share(i) from 0 (bottom) to 1 (top).
function chart({title, ticks, share, describe}) {
  const layers = data.lens.layers;
  const [width, height, left, right, top, bottom] = [480, 200, 52, 12, 10, 34];
  const x = (i) => left + ((width - left - right) * i) / Math.max(1, layers.length - 1);
  const y = (s) => top + (height - top - bottom) * (1 - s);
  const picture = svg('svg', {
    class: 'chart',
    viewBox: `0 0 ${width} ${height}`,
    role: 'img',
    'aria-label': `${title}; the table below has the numbers`
  });
  for (const [label, s] of ticks) {
    picture.append(
        svg('line', {class: 'axis', x1: left, x2: width - right, y1: y(s), y2: y(s)}),
        svg('text', {x: left - 6, y: y(s) + 4, 'text-anchor': 'end'}, label));
  }
  const every = Math.max(1, Math.ceil(layers.length / 8));
  layers.forEach((layer, i) => {
    if (i === layers.length - 1 || (i % every === 0 && layers.length - 1 - i >= every)) {
      picture.append(svg('text', {x: x(i), y: height - 18, 'text-anchor': 'middle'}, layer));
    }
  });
  picture.append(svg('text', {x: (left + width) / 2, y: height - 3, 'text-anchor': 'middle'}, 'after block'));
  const points = layers.map((_, i) => [i, share(i)]).filter(([, s]) => isNumber(s));
  picture.append(svg('polyline', {class: 'curve', points: points.map(([i, s]) => `${x(i)},${y(s)}`).join(' ')}));
  for (const [i, s] of points) {
    picture.append(svg(
        'circle', {cx: x(i), cy: y(s), r: layers.length > 60 ? 2 : 3, 'data-tip': `${afterLayer(i)}\n${describe(i)}`}));
  }
  return el('div', {}, el('h3', {}, title), picture);
}

function drawLens() {
  const holder = scrollBox('Logit lens, layer by position', lensTable('top'), true);
  const key = el('div', {});
  const choose = (mode) => {
    const {scrollLeft} = holder;
    holder.replaceChildren(lensTable(mode));
    holder.scrollLeft = scrollLeft;
    key.replaceChildren(legend('share', ...lensModes[mode].legend));
  };
  key.append(legend('share', ...lensModes.top.legend));
  const radios = Object.entries(lensModes).map(([mode, {label}]) => {
    const input = el('input', {type: 'radio', name: 'lens', value: mode, checked: mode === 'top'});
    input.addEventListener('change', () => choose(mode));
    return el('label', {}, input, ' ', label);
  });
  const ticks = [[0, '0'], [10, '10'], [100, '100'], [1000, '1,000'], [10000, '10,000'], [100000, '100,000']]
                    .filter(([rank]) => rank < data.model.d_vocab)
                    .map(([rank, label]) => [label, climbed(rank)]);
  section(
      'lens', 'The logit lens: how the answer takes shape, layer by layer',
      p('Through the model runs the ', em('residual stream'),
        `: for each token a list of ${grouped(data.model.d_model)} numbers. ` +
            'Each block reads it and adds something to it; only at the end is it turned into logits. The logit lens does that early, after every block: ',
        el('em', {}, 'what would the model answer if it stopped here?')),
      p('The answer’s ', em('rank'),
        ` is how many tokens are likelier than ${quoted(answer.token)} at that point: rank 0 is the first choice.`),
      el('div', {class: 'pair'}, chart({
           title: `Rank of ${quoted(answer.token)} at the last token (higher is better)`,
           ticks,
           share: (i) => climbed(data.lens.rank[i]?.[last]),
           describe: (i) => `rank ${exact(data.lens.rank[i]?.[last])}`
         }),
         chart({
           title: `Probability of ${quoted(answer.token)} at the last token`,
           ticks: [['0 %', 0], ['50 %', 0.5], ['100 %', 1]],
           share: (i) => data.lens.probability[i]?.[last],
           describe: (i) => `probability ${exact(data.lens.probability[i]?.[last])}`
         })),
      el('h3', {}, 'Every layer at every token'),
      p('Read downward: from the input (“embed”) through the blocks to the model’s output in the last row. Each cell names the ' +
        'likeliest next token at that place. The last column is where the answer comes from; the others predict what follows their own token. Underlined: the answer itself.'),
      el('fieldset', {}, el('legend', {}, 'Number and colour:'), ...radios), key, holder);
}

function checkLine() {
  const {components, sum} = data.attribution;
  const gap = isNumber(sum) && isNumber(answer.logit) ? Math.abs(sum - answer.logit) : null;
  const fine = gap !== null && gap <= 1e-3 * Math.max(1, Math.abs(answer.logit));
  return el(
      'p', {class: fine ? 'check' : 'check off'},
      `Check: the ${components.length} components sum to ${signed(sum, 4)}; the model’s logit of ${
          quoted(answer.token)} is ${signed(answer.logit, 4)}. ` +
          (gap === null  ? 'They can’t be compared.' :
               gap === 0 ? 'They agree exactly.' :
               fine      ? `They agree (difference ${gap.toExponential(1)}, from rounding).` :
                           `They differ by ${gap.toPrecision(3)}: read the shares with care.`));
}

function componentTable() {
  const components = [...data.attribution.components].sort((a, b) => size(b.logit) - size(a.logit));
  const largest = largestOf(components.map((c) => c.logit));
  const head =
      el('tr', {}, el('th', {scope: 'col'}, 'component'), el('th', {scope: 'col', class: 'what'}, 'what it is'),
         el('th', {scope: 'col', class: 'track'}, '← against the answer | for the answer →'),
         el('th', {scope: 'col', class: 'number'}, 'logit'));
  const body = el(
      'tbody', {},
      ...components.map(
          (c) => el(
              'tr', {'data-tip': `${c.name}: ${wordsOf(c)}\nadds ${exact(c.logit)} to the answer’s logit`},
              el('th', {scope: 'row'}, el('code', {}, c.name)), el('td', {class: 'what'}, wordsOf(c)),
              el('td', {class: 'track'}, signedBar(c.logit, largest)), el('td', {class: 'number'}, signed(c.logit)))));
  return el(
      'table', {class: 'bars', 'aria-label': 'What each component adds to the answer’s logit'}, el('thead', {}, head),
      body);
}

function drawAttribution() {
  const table = componentTable();
  const heads = data.attribution.heads;
  const count = Math.max(0, ...heads.map((row) => row.length));
  const largest = largestOf(heads.flat());
  section(
      'attribution', 'What pushes the answer up and down',
      p(`The logit of ${
            quoted(
                answer
                    .token)} is a sum: every part of the model adds its share to the residual stream of the last token. ` +
            'Each block has two parts: ',
        em('attention'), ', which brings in information from other tokens, and an ', em('MLP'),
        ', a small network that works on each token by itself. A share above 0 pushes the answer up, below 0 down. ' +
            '(The scale of the final normalisation is held at the value that it has in this run.)'),
      scrollBox('Components by size', table), toggleRows(table, 12, 'components'), checkLine(),
      el('h3', {}, 'Attention heads'),
      p('Attention is made of several ', em('heads'),
        ' that work side by side, each looking at the tokens in its own way. ' +
            'The map splits each block’s attention into its heads' +
            (data.heads.length ? `; head ${data.heads[0].layer}.${data.heads[0].head}, the strongest, is in row ${
                                     data.heads[0].layer}, column ${data.heads[0].head}.` :
                                 '.')),
      largest > 0 &&
          legend(
              'signed', `−${largest.toFixed(2)}`, `+${largest.toFixed(2)}`, 'logit that the head adds to the answer'),
      scrollBox(
          'Attention heads, layer by head', heatTable({
            kind: 'grid',
            scale: 'signed',
            corner: 'block',
            label: 'What each head adds to the answer’s logit, layer by head',
            columns: Array.from({length: count}, (_, h) => el('th', {scope: 'col'}, String(h))),
            rows: heads.map((_, layer) => String(layer)),
            cell: (r, c) =>
                ({value: isNumber(heads[r][c]) ? heads[r][c] / (largest || 1) : null, content: signed(heads[r][c])}),
            tip: (r, c) => `head ${r}.${c} (block ${r}, head ${c})\nadds ${exact(heads[r][c])} to the answer’s logit`,
          })));
}

function drawPatching() {
  const title = 'Patching: where the difference between the two prompts is carried';
  const {patching, versus} = data;
  if (!patching || !versus) {
    section(
        'patching', title,
        p('Not part of this report: it needs a second prompt to compare with, given as ', el('code', {}, '--vs "…"'),
          '. It then shows, for every layer and token, how much of the answer is carried there.'));
    return;
  }
  const clean = quoted(patching.answer.token), other = quoted(patching.versus_answer.token);
  const {recovered, layers} = patching;
  const columns = tokens.map((token, c) => {
    const differs = versus.tokens[c] !== undefined && versus.tokens[c] !== token;
    const head = tokenHead(c, differs && el('small', {}, 'instead of'), differs && tokenSpan(versus.tokens[c]));
    if (differs) head.className = 'differs';
    return head;
  });
  const largest = Math.max(1, largestOf(recovered.flat()));
  section(
      'patching', title,
      p(`The second prompt, ${quotedText(versus.text)}, ${comparedToken()} Now the model reads the second prompt again, but at one single place ` +
        '– the residual stream before one block, at one token – the numbers are replaced by those from the first prompt. Everything after that place is computed from them. ' +
        `If the scores turn from those after the second prompt to those after the first, that place carries what makes the difference.`),
      p('Each cell is one such experiment. ', em('Recovered'),
        ` 0 means that nothing changed, 1 that the first prompt’s scores are fully back; beyond 0 and 1 it pushes further than either prompt. ` +
            `It is measured on logit(${clean}) − logit(${other}), which is ${
                signed(patching.clean_difference)} after the first prompt (1) and ${
                signed(patching.corrupted_difference)} after the second (0).`),
      p(patchFinding()),
      legend(
          'signed', `−${largest.toFixed(2)}`, `+${largest.toFixed(2)}`,
          'recovered share of the logit difference; marked column heads: where the prompts differ'),
      scrollBox('Patching, layer by position', heatTable({
                  kind: 'grid',
                  scale: 'signed',
                  corner: 'before block',
                  label: 'Recovered logit difference, layer by position',
                  columns,
                  rows: layers,
                  cell: (r, c) => {
                    const value = recovered[r]?.[c];
                    return {value: isNumber(value) ? value / largest : null, content: signed(value)};
                  },
                  tip: (r, c) => `residual stream before block ${layers[r]}\nposition ${c}: ${visible(tokens[c])}` +
                      (versus.tokens[c] !== tokens[c] ? ` instead of ${visible(versus.tokens[c] ?? '')}` : '') +
                      `\nrecovered ${exact(recovered[r]?.[c])}`,
                })));
}

function headCard(head) {
  const n = tokens.length;
  const cell = n <= 8 ? 42 : n <= 24 ? 20 : 11;
  const looks = strongestKeys(head);
  const table = heatTable({
    kind: `pattern ${n > 8 ? 'dense upright' : ''} ${n > 24 ? 'tiny' : ''}`,
    scale: 'share',
    corner: '',
    label: `Attention of head ${head.layer}.${head.head}`,
    columns: tokens.map((_, c) => el('th', {scope: 'col'}, tokenSpan(tokens[c]))),
    rows: tokens.map(tokenSpan),
    cell: (r, c) => {
      const value = head.pattern[r]?.[c];
      const shade = n > 24 && isNumber(value) ? Math.sqrt(value) : value;
      return {value: shade, content: value === 0 ? '' : isNumber(value) ? String(Math.round(value * 100)) : 'n/a'};
    },
    tip: (r, c) => `position ${r} (${visible(tokens[r])})\nlooks at ${c} (${visible(tokens[c])})\nshare ${
        exact(head.pattern[r]?.[c])}`,
  });
  table.style.setProperty('--cell', `${cell}px`);
  return el(
      'div', {}, el('h3', {}, `Head ${head.layer}.${head.head}: `, `${signed(head.logit)} to the answer’s logit`),
      el('p', {class: 'small soft'}, 'From the last token it looks at ',
         looks.map(([key, weight]) => `${place(key)} (${percent(weight)})`).join(', ') + '.'),
      scrollBox(`Attention of head ${head.layer}.${head.head}`, table));
}

function drawPatterns() {
  if (data.heads.length === 0) return;
  section(
      'patterns', 'Where the strongest heads look',
      p('These heads add most to the answer’s logit, or take most from it. Each row is a token that looks, each column a token that it looks at; ' +
        'the shares of a row sum to 100 %. Tokens to the right of the diagonal come later in the text, so nothing can be read from them. The last row is the one that makes the answer.'),
      legend(
          'share', '0 %', '100 %',
          tokens.length <= 8 ? 'share of attention; the numbers are percent' :
              tokens.length <= 24 ?
                               'share of attention' :
                               'share of attention; coloured by its square root, so that small shares can be seen'),
      el('div', {class: 'heads'}, ...data.heads.map(headCard)));
}

function drawNumbers() {
  const details = el('details', {}, el('summary', {}, 'All numbers of this page as JSON'));
  details.addEventListener('toggle', () => {
    if (details.open && !details.querySelector('pre')) {
      details.append(el('pre', {tabindex: '0'}, document.getElementById('explanation').textContent.trim()));
    }
  });
  section(
      'numbers', 'The numbers themselves',
      p('Hover over anything, or move through a table with the arrow keys, to see its exact value. The page is drawn from the same JSON that ',
        el('code', {}, '--json'), ' prints.'),
      details);
}

drawHeader();
drawTokens();
drawNextTokens();
drawLens();
drawAttribution();
drawPatching();
drawPatterns();
drawNumbers();
