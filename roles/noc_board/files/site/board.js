'use strict';
// The board draws figures/stats.json. Nobody is at the keyboard: it looks for new figures every five minutes, keeps what it
// has when the server is away, and turns red when the figures are older than a day.
(() => {
  const RELOAD = 5 * 60e3, LANGUAGE = 30e3, STALE = 26 * 36e5, LATE_DAYS = 5;
  const TEXT = {
    en: {
      title: (d) => `Mail in our name, last ${d.days} days`, messages: 'messages', passed: 'authenticated',
      stopped: 'failed, stopped', failed: 'let through', taken: 'reports taken',
      daily: 'Messages per day', domains: 'Authenticated, by domain', origin: 'Where failing mail came from',
      networks: 'Failing mail by network', none: 'No figures yet', other: 'other', domain: (l) => `Domain ${l}`,
      masked: 'Rounded and grouped so that no sender can be told from another.',
      asof: (d) => `Up to ${d.through} · made ${d.at}`,
      empty: 'No figures yet: the first reports of receivers come after a day or two.',
      stale: (d) => `These figures are ${d.hours} hours old. Something is broken: call the mail team.`,
      away: (d) => `The server cannot be reached; these figures are of ${d.at}.`,
      nothing: 'The server cannot be reached.',
      late: (d) => `No report of a receiver since ${d.through}: call the mail team.`,
      isp: 'Access provider', web_host: 'Web hosting', email_provider: 'Mail provider', email_security: 'Mail filter',
      cloud: 'Cloud', saas: 'Online service', it_service: 'IT company', education: 'University', government: 'Government',
      marketing: 'Marketing', finance: 'Finance', healthcare: 'Health', unknown: 'Unknown',
    },
    ja: {
      title: (d) => `当組織名義のメール(直近${d.days}日間)`, messages: '通', passed: '認証済み',
      stopped: '失敗・阻止', failed: '失敗・通過', taken: 'レポート受領率',
      daily: '1日あたりの通数', domains: 'ドメイン別の認証率', origin: '認証に失敗したメールの発信元',
      networks: '発信元ネットワーク', none: 'データなし', other: 'その他', domain: (l) => `ドメイン${l}`,
      masked: '個々の送信者が分からないよう、丸めてまとめた数値です。',
      asof: (d) => `${d.through}まで · ${d.at}更新`,
      empty: 'まだデータがありません。最初のレポートは1〜2日後に届きます。',
      stale: (d) => `データが${d.hours}時間更新されていません。メール担当者に連絡してください。`,
      away: (d) => `サーバーに接続できません。${d.at}時点の数値です。`,
      nothing: 'サーバーに接続できません。',
      late: (d) => `${d.through}以降、レポートが届いていません。メール担当者に連絡してください。`,
      isp: 'アクセス回線', web_host: 'ウェブホスティング', email_provider: 'メール事業者', email_security: 'メールフィルタ',
      cloud: 'クラウド', saas: 'オンラインサービス', it_service: 'IT企業', education: '大学・研究機関', government: '政府機関',
      marketing: 'マーケティング', finance: '金融', healthcare: '医療', unknown: '不明',
    },
  };
  // From dark to bright, so that the order is seen without colours, too.
  const STEPS = [[10000, '#f0e442'], [1000, '#e69f00'], [100, '#cc79a7'], [1, '#6f79b8']];
  const SERIES = [
    ['passed', '#009e73', null],
    ['stopped', '#56b4e9', { symbol: 'rect', dashArrayX: [1, 0], dashArrayY: [4, 5], rotation: Math.PI / 4, color: '#0b2a40' }],
    ['failed', '#d55e00', { symbol: 'circle', dashArrayX: [[6, 6], [0, 6, 6, 0]], dashArrayY: [6, 0], symbolSize: 0.8, color: '#2a0e00' }],
  ];

  const asked = new URLSearchParams(location.search).get('lang');
  let language = asked in TEXT ? asked : 'en';
  let figures = null, away = false, world = false;
  const charts = {};
  const $ = (id) => document.getElementById(id);
  const step = (n) => STEPS.find(([least]) => n >= least)?.[1] ?? STEPS.at(-1)[1];

  function number(value, options) { return new Intl.NumberFormat(language, options).format(value); }
  function large(value) { return number(value, value >= 1e8 ? { notation: 'compact', maximumFractionDigits: 1 } : {}); }
  function short(value) { return number(value, { notation: 'compact', maximumSignificantDigits: 3 }); }
  function narrow(value) { return value >= 1e6 ? short(value) : number(value); }
  function share(value, digits = 1) {
    return value === null || value === undefined ? '–' : `${number(value, { maximumFractionDigits: digits })} %`;
  }
  // A day is a UTC day and stays one; a moment is told in the time of the room.
  function day(iso, options = { month: 'short', day: 'numeric' }) {
    return iso ? new Intl.DateTimeFormat(language, { ...options, timeZone: 'UTC' }).format(new Date(`${iso}T00:00:00Z`)) : '–';
  }
  function moment(iso) {
    return new Intl.DateTimeFormat(language, { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', hourCycle: 'h23' })
      .format(new Date(iso));
  }

  function rows(id, cells) {
    $(id).replaceChildren(...cells.map((parts) => {
      const row = document.createElement('tr');
      for (const part of parts.cells) {
        const cell = row.insertCell();
        if (part instanceof Node) { cell.append(part); cell.className = 'bar'; } else cell.textContent = part;
      }
      row.cells[0].classList.add('name');
      if (parts.swatch) {
        const swatch = document.createElement('i');
        swatch.className = 'swatch';
        swatch.style.backgroundColor = parts.swatch;
        row.cells[0].prepend(swatch);
      }
      if (parts.other) row.className = 'other';
      return row;
    }));
  }
  function bar(percent) {
    const track = document.createElement('div'), part = document.createElement('div');
    track.className = 'track';
    part.style.width = `${percent}%`;
    track.append(part);
    return track;
  }
  // The first few, the rest with what cannot be told apart.
  function cells(list, other, most, name, swatch) {
    const shown = list.slice(0, list.length > most || other ? most - 1 : most);
    const rest = other + list.slice(shown.length).reduce((sum, one) => sum + one.messages, 0);
    const found = shown.map((one) => ({ cells: [name(one.code), large(one.messages)], swatch: swatch && swatch(one.messages) }));
    if (rest) found.push({ cells: [TEXT[language].other, large(rest)], other: true, swatch: swatch && 'transparent' });
    return found;
  }

  function say() {
    const text = TEXT[language], classes = document.body.classList;
    const old = figures ? Date.now() - Date.parse(figures.generated) : 0;
    const late = figures?.through ? Date.now() - Date.parse(`${figures.through}T00:00:00Z`) > (LATE_DAYS + 1) * 864e5 : false;
    const facts = {
      hours: number(Math.floor(old / 36e5)), at: figures ? moment(figures.generated) : '', through: day(figures?.through),
    };
    const state = figures && old > STALE ? 'stale' : away ? 'away' : late ? 'late' : figures && !figures.through ? 'empty' : '';
    for (const name of ['stale', 'away', 'late', 'empty']) classes.toggle(name, name === state);
    const sentence = state === 'away' && !figures ? text.nothing : state ? text[state] : '';
    $('notice').textContent = typeof sentence === 'function' ? sentence(facts) : sentence;
    $('asof').textContent = figures?.through ? text.asof(facts) : '';
    document.title = state || (figures ? 'ready' : 'waiting');
  }

  function draw() {
    const text = TEXT[language], days = figures?.daily.length ?? 30;
    document.documentElement.lang = language;
    for (const element of document.querySelectorAll('[data-text]')) {
      const words = text[element.dataset.text];
      element.textContent = typeof words === 'function' ? words({ days: number(days) }) : words;
    }
    say();
    if (!figures) return;
    document.body.classList.remove('waiting');
    const total = figures.totals;
    const values = {
      messages: large(total.messages), passed: share(total.passed_pct), stopped: narrow(total.stopped),
      failed: narrow(total.failed), taken: share(figures.survey?.taken_pct),
    };
    for (const [id, value] of Object.entries(values)) {
      $(id).textContent = value;
      $(id).classList.toggle('long', value.length > (id === 'messages' ? 9 : 6));
    }
    document.querySelector('.week').textContent = `${day(figures.week_first)} – ${day(figures.week_last)}`;
    for (const [card, list] of [['domains', figures.domains], ['origin', [...figures.countries, ...(figures.countries_other ? [1] : [])]],
      ['networks', [...figures.networks, ...(figures.networks_other ? [1] : [])]]]) {
      document.querySelector(`.${card}`).classList.toggle('without', !list.length);
    }
    rows('domains', figures.domains.slice(0, 6).map((one) => ({
      cells: [/^[A-Z]{1,2}$/.test(one.name) ? text.domain(one.name) : one.name, bar(one.passed_pct), share(one.passed_pct, 0)],
    })));
    const regions = new Intl.DisplayNames(language, { type: 'region', style: 'short' });
    rows('countries', cells(figures.countries, figures.countries_other, 6, (code) => regions.of(code), step));
    rows('networks', cells(figures.networks, figures.networks_other, 6, (code) => text[code]));
    graphs(text);
  }

  function chart(id) {
    return charts[id] ??= echarts.init($(id), null, { renderer: 'canvas' });
  }
  function graphs(text) {
    const family = getComputedStyle(document.body).fontFamily, soft = '#c3cbdd';
    const label = { color: soft, fontSize: 28, fontFamily: family };
    chart('daily').setOption({
      animation: false,
      grid: { top: 24, left: 12, right: 24, bottom: 4, containLabel: true },
      xAxis: {
        type: 'category', data: figures.daily.map((one) => day(one.day, { month: 'numeric', day: 'numeric' })),
        axisLabel: { ...label, interval: 4, hideOverlap: true }, axisTick: { show: false }, axisLine: { lineStyle: { color: soft } },
      },
      yAxis: {
        type: 'value', splitNumber: 3, minInterval: 10, axisLabel: { ...label, formatter: short },
        splitLine: { lineStyle: { color: '#34405f' } }, max: figures.totals.messages ? null : 100,
      },
      series: SERIES.map(([key, color, decal]) => ({
        name: text[key], type: 'bar', stack: 'all', barWidth: '78%', silent: true,
        itemStyle: { color, decal: decal ?? undefined }, data: figures.daily.map((one) => one[key]),
      })),
    }, { notMerge: true });
    if (world && figures.countries.length) {
      chart('map').setOption({
        animation: false,
        series: [{
          type: 'map', map: 'world', silent: true, roam: false, top: 4, bottom: 4, left: 0, right: 0,
          itemStyle: { areaColor: '#2b3552', borderColor: '#0b1020' }, label: { show: false },
          data: figures.countries.map((one) => ({
            name: one.code, value: one.messages, itemStyle: { areaColor: step(one.messages), borderColor: '#ffffff', borderWidth: 1 },
          })),
        }],
      }, { notMerge: true });
      charts.map.resize();
    }
    charts.daily.resize();
  }

  async function fetched(path, options = {}) {
    const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(20e3) });
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  }
  async function load() {
    try {
      if (!world) {
        echarts.registerMap('world', await fetched('world.json'));
        world = true;
      }
    } catch { /* without a map the figures are still worth showing; it is tried again */ }
    try {
      const found = await fetched('figures/stats.json', { cache: 'no-store' });
      if (found.version !== 1) throw new Error('another version');
      figures = found;
      away = false;
    } catch {
      away = true;
    }
    draw();
  }

  draw();
  load();
  setInterval(load, RELOAD);
  setInterval(say, 60e3);
  if (!(asked in TEXT)) setInterval(() => { language = language === 'en' ? 'ja' : 'en'; draw(); }, LANGUAGE);
  addEventListener('resize', () => Object.values(charts).forEach((one) => one.resize()));
  // A page that has been open for a week takes a new version of itself, at night and only from a server that answers.
  setTimeout(async () => { try { if ((await fetch('index.html', { cache: 'no-store' })).ok) location.reload(); } catch { /* later */ } }, 7 * 864e5);
})();
