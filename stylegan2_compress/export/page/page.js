// Makes images with the networks beside this file, or within it, in ONNX Runtime Web.

const field = (id) => document.getElementById(id);
const status = field('status');

// --- Files: beside the page, or in it as gzip and base64 ---------------------------------------------------------------

async function bytesOf(name) {
  const inside = document.querySelector(`script[data-file="${name}"]`);
  if (!inside) {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`${name}: ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  }
  const packed = Uint8Array.from(atob(inside.textContent), (character) => character.charCodeAt(0));
  inside.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function loadRuntime() {
  const inside = document.querySelector('script[data-file="onnxruntime-web.js"]');
  const source = inside
    ? URL.createObjectURL(new Blob([await bytesOf('onnxruntime-web.js')], { type: 'text/javascript' }))
    : new URL('onnxruntime-web.js', document.baseURI).href;
  const ort = await import(source);
  ort.env.wasm.wasmBinary = (await bytesOf('onnxruntime-web.wasm')).buffer;
  ort.env.wasm.numThreads = 1; // More would need a server that isolates the page from other origins.
  return ort;
}

// --- z of a seed, as numpy.random.RandomState(seed).randn makes it: MT19937 and the polar method ------------------------

function normals(seed, count) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) {
    state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  }
  let position = 624;
  const word = () => {
    if (position === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      position = 0;
    }
    let y = state[position++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
  const uniform = () => ((word() >>> 5) * 67108864 + (word() >>> 6)) / 9007199254740992;
  const values = new Float32Array(count + 1);
  for (let i = 0; i < count; i += 2) {
    let x, y, square;
    do {
      x = 2 * uniform() - 1;
      y = 2 * uniform() - 1;
      square = x * x + y * y;
    } while (square >= 1 || square === 0);
    const factor = Math.sqrt((-2 * Math.log(square)) / square);
    values[i] = factor * y;
    values[i + 1] = factor * x;
  }
  return values.slice(0, count);
}

// --- A generator -------------------------------------------------------------------------------------------------------

class Generator {
  constructor(ort, about, name) {
    Object.assign(this, { ort, about, name, known: new Map(), times: [] });
  }

  async open(runtime) {
    const networks = this.about.networks;
    this.files ??= [await bytesOf(networks.mapping.file), await bytesOf(networks.synthesis.file)];
    // The mapping network is small: WebGPU is for the other one.
    this.mapping = await this.ort.InferenceSession.create(this.files[0], { executionProviders: ['wasm'] });
    this.synthesis = await this.ort.InferenceSession.create(this.files[1], { executionProviders: [runtime] });
  }

  show() {
    const figure = document.createElement('figure');
    this.canvas = document.createElement('canvas');
    this.canvas.width = this.canvas.height = this.about.generator.img_resolution;
    this.canvas.classList.toggle('small', this.canvas.width < 128);
    this.canvas.setAttribute('role', 'img');
    this.caption = document.createElement('figcaption');
    figure.append(this.canvas, this.caption);
    field('images').append(figure);
  }

  // ws [num_ws · w_dim] of a seed; the last few are remembered.
  async styles(seed, label, psi) {
    const { z_dim, c_dim, num_ws } = this.about.generator;
    const key = [seed, label, psi].join();
    if (!this.known.has(key)) {
      const c = new Float32Array(c_dim);
      if (c_dim) c[label] = 1;
      const all = { z: normals(seed, z_dim), c, psi: Float32Array.of(psi), cutoff: Float32Array.of(num_ws) };
      const inputs = {};
      for (const name of Object.keys(this.about.networks.mapping.inputs)) {
        const shape = name === 'z' || name === 'c' ? [1, all[name].length] : [1];
        inputs[name] = new this.ort.Tensor('float32', all[name], shape);
      }
      if (this.known.size > 16) this.known.clear();
      this.known.set(key, (await this.mapping.run(inputs)).ws.data);
    }
    return this.known.get(key);
  }

  // The image [C · H · W] in [-1, 1] for the choices of the controls, and what it took.
  async image({ seed, second, label, psi, share, layer }) {
    const { num_ws, w_dim } = this.about.generator;
    const from = await this.styles(seed, label, psi);
    const to = share > 0 || layer < num_ws ? await this.styles(second, label, psi) : from;
    const ws = Float32Array.from(from, (value, i) => (i < layer * w_dim ? value + share * (to[i] - value) : to[i]));
    const start = performance.now();
    const { image } = await this.synthesis.run({ ws: new this.ort.Tensor('float32', ws, [1, num_ws, w_dim]) });
    const pixels = await image.getData();
    return [pixels, performance.now() - start];
  }

  // The median of the last images: a browser does other things as well.
  typical(milliseconds) {
    this.times = [...this.times, milliseconds].slice(-15);
    return [...this.times].sort((a, b) => a - b)[this.times.length >> 1];
  }

  draw(pixels) {
    const side = this.canvas.width;
    const area = side * side;
    const channels = this.about.generator.img_channels;
    const data = new ImageData(side, side);
    for (let i = 0; i < area; i++) {
      for (let channel = 0; channel < 3; channel++) {
        data.data[4 * i + channel] = Math.round((pixels[i + (channels === 3 ? channel * area : 0)] + 1) * 127.5);
      }
      data.data[4 * i + 3] = 255;
    }
    this.canvas.getContext('2d', { willReadFrequently: true }).putImageData(data, 0, 0); // It is in memory anyway.
  }
}

// --- The page ----------------------------------------------------------------------------------------------------------

function choices() {
  return {
    seed: field('seed').valueAsNumber,
    second: field('second').valueAsNumber,
    share: field('interpolation').valueAsNumber,
    layer: field('mixing').valueAsNumber,
    psi: field('psi').valueAsNumber,
    label: Number(field('class').value || 0),
  };
}

function describe({ seed, second, share, layer, label, psi }, { c_dim, num_ws }) {
  const parts = [`seed ${seed}`];
  if (share > 0) parts.push(`${Math.round(share * 100)} % of the way to seed ${second}`);
  if (layer < num_ws) parts.push(`layers from ${layer} on of seed ${second}`);
  if (c_dim) parts.push(`class ${label}`);
  return `${parts.join(', ')}, ψ ${psi}`;
}

function prepareControls(about, changed) {
  const { num_ws, c_dim } = about.generator;
  field('mixing').max = num_ws;
  field('mixing').value = num_ws;
  field('truncation').hidden = !('psi' in about.networks.mapping.inputs);
  field('classes').hidden = !c_dim;
  for (let i = 0; i < c_dim; i++) field('class').add(new Option(String(i)));
  field('runtimes').hidden = !(about.webgpu && navigator.gpu);
  const showValues = () => {
    for (const output of document.querySelectorAll('output')) output.value = field(output.htmlFor.value).value;
    if (field('mixing').valueAsNumber === num_ws) field('mixing').nextElementSibling.value = 'none';
    field('mixing').setAttribute('aria-valuetext', field('mixing').nextElementSibling.value);
  };
  const update = () => {
    showValues();
    if (field('controls').checkValidity()) changed();
  };
  field('controls').addEventListener('input', update);
  field('controls').addEventListener('submit', (event) => event.preventDefault());
  const anySeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1000000;
  field('random').addEventListener('click', () => {
    field('seed').value = anySeed();
    update();
  });
  field('swap').addEventListener('click', () => {
    [field('seed').value, field('second').value] = [field('second').value, field('seed').value];
    update();
  });
  field('walk').addEventListener('click', () => {
    const walks = field('walk').getAttribute('aria-pressed') !== 'true';
    field('walk').setAttribute('aria-pressed', String(walks));
    update();
  });
  // A step of a walk: towards the second seed, then on to another.
  const step = () => {
    const share = field('interpolation').valueAsNumber + 0.02;
    if (share > 1) {
      field('seed').value = field('second').value;
      field('second').value = anySeed();
    }
    field('interpolation').value = share > 1 ? 0 : share;
    showValues();
  };
  showValues();
  field('controls').hidden = false;
  return step;
}

function save(generators, text) {
  const sheet = document.createElement('canvas');
  sheet.height = Math.max(...generators.map(({ canvas }) => canvas.height));
  sheet.width = generators.reduce((sum, { canvas }) => sum + canvas.width, 0);
  let left = 0;
  for (const { canvas } of generators) {
    sheet.getContext('2d').drawImage(canvas, left, 0);
    left += canvas.width;
  }
  sheet.toBlob((blob) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    link.download = `${text.replace(/[^\w.]+/g, '-')}.png`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

// How far this browser's image is from the one that was made when the page was written, in some pixels.
async function compare(generator) {
  const { seed, psi, positions, values } = generator.about.example;
  const { num_ws } = generator.about.generator;
  const [pixels] = await generator.image({ seed, second: seed, label: 0, psi, share: 0, layer: num_ws });
  return Math.max(...positions.map((position, i) => Math.abs(pixels[position] - values[i])));
}

// Opens all networks in a runtime. Returns how far their images are from what they should be, at most.
async function start(generators, runtime) {
  const differences = [];
  for (const generator of generators) {
    generator.times = [];
    await generator.open(runtime);
    differences.push(await compare(generator));
  }
  const difference = Math.max(...differences);
  const limit = generators[0].about.limit;
  if (!(difference < limit)) throw new Error(`this browser computes other images, by ${difference} (${runtime})`);
  return difference;
}

async function main() {
  const about = JSON.parse(new TextDecoder().decode(await bytesOf('page.json')));
  const ort = await loadRuntime();
  const generators = [new Generator(ort, about, about.teacher ? 'Student' : '')];
  if (about.teacher) generators.unshift(new Generator(ort, { ...about, ...about.teacher }, 'Teacher'));
  const name = about.generator.file.split(/[\\/]/).at(-1);
  document.title = name;
  document.querySelector('h1').textContent = name;
  let runtime; // That the networks are open in, and compared.
  const use = async (chosen) => {
    runtime = undefined;
    const made = `ONNX Runtime Web ${about.onnxruntime_web}. ${about.licence}`;
    field('about').textContent = made;
    const difference = await start(generators, chosen);
    runtime = chosen;
    field('about').textContent =
      `In ${about.example.values.length} pixels of an image, which were compared, this browser differs from ` +
      `${about.teacher ? 'each network' : 'the network'} by ${difference.toExponential(0)} at most. ${made}`;
    status.textContent = '';
    status.className = '';
    status.setAttribute('role', 'status');
  };
  await use('wasm');
  for (const generator of generators) generator.show();

  let wanted = false;
  let running = false;
  const render = async () => {
    wanted = true;
    if (running) return;
    running = true;
    const walks = () => field('walk').getAttribute('aria-pressed') === 'true';
    try {
      while (wanted || walks()) {
        wanted = false;
        if (runtime !== field('runtime').value) await use(field('runtime').value);
        const chosen = choices();
        for (const generator of generators) {
          const [pixels, milliseconds] = await generator.image(chosen);
          generator.draw(pixels);
          generator.canvas.setAttribute('aria-label', `Image of ${describe(chosen, about.generator)}`);
          generator.caption.textContent = `${generator.name} ${generator.typical(milliseconds).toFixed(1)} ms`.trim();
        }
        if (!walks()) status.textContent = `Image of ${describe(chosen, about.generator)}`;
        await new Promise(requestAnimationFrame); // Lets the browser draw.
        if (walks()) step();
      }
    } catch (error) {
      fail(error);
    }
    running = false;
  };
  const step = prepareControls(about, render);
  field('save').addEventListener('click', () => save(generators, describe(choices(), about.generator)));
  await render();
  document.body.dataset.ready = 'true';
  window.generators = generators; // For the console.
}

function fail(error) {
  status.className = 'bad';
  status.setAttribute('role', 'alert');
  status.textContent = `This page does not work here: ${error.message}`;
}

main().catch(fail);
