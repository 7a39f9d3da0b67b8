// The viewer of neuroseg.app.volume_viewer: NiiVue in a component of Streamlit. `show` gets what the page gives.
'use strict'
const { Niivue, NVImage, SLICE_TYPE, DRAG_MODE, MULTIPLANAR_TYPE, SHOW_RENDER } = window.niivue
const byId = id => document.getElementById(id)
const say = (type, more) =>
  window.parent.postMessage({ isStreamlitMessage: true, type: 'streamlit:' + type, ...more }, '*')
const answer = value => say('setComponentValue', { value, dataType: 'json' })
const RED = [213, 60, 40], BLUE = [0, 114, 178], GREEN = [0, 158, 115], ORANGE = [230, 159, 0]
const KEPT = 16 // files that stay decoded in the browser, those used last
const files = new Map(), views = new Map() // by address; by case
let args = null, texts = {}, shown = null, view = null, left = null, right = null, drawn = 0

// Files and images --------------------------------------------------------------------------------------------------

function media(url) { // the page may lie below a path of a reverse proxy
  return window.location.pathname.split('/component/')[0] + url
}

function kept(key, make) { // a promise; made again only when it was not used for long, or has failed
  const found = files.get(key) ?? make()
  files.delete(key); files.set(key, found)
  found.catch(() => files.delete(key))
  for (const old of [...files.keys()].slice(0, Math.max(0, files.size - KEPT))) files.delete(old)
  return found
}

function image(url, [low, high], colours = 'gray') {
  return kept(url, async () => {
    const got = await fetch(media(url))
    if (!got.ok) throw new Error(`${got.status}`)
    return NVImage.new(await got.arrayBuffer(), 'volume.nii.gz', colours, 1, null, low, high)
  })
}

function labels(img, colours) { // colour of each label, from 1
  const table = { R: [0], G: [0], B: [0], A: [0], labels: [''] }
  for (const [r, g, b] of colours) {
    table.R.push(r); table.G.push(g); table.B.push(b); table.A.push(255); table.labels.push('')
  }
  img.setColormapLabel(table)
  return img
}

const maskOf = (url, colour) => image(url, [0, 1], 'red').then(img => labels(img, [colour]))

function differenceOf(spec) {
  return kept(spec.mask + ' ' + spec.truth, async () => {
    const [mask, truth] = await Promise.all([image(spec.mask, [0, 1], 'red'), image(spec.truth, [0, 1], 'red')])
    const both = mask.clone()
    both.img = mask.img.map((m, i) => m ? (truth.img[i] ? 1 : 2) : (truth.img[i] ? 3 : 0))
    return labels(both, [BLUE, ORANGE, GREEN])
  })
}

function layerOf(spec, layer) { // the image on top of a scan, or null
  if (layer === 'mask' && spec.mask) return maskOf(spec.mask, RED)
  if (layer === 'reference' && spec.truth) return maskOf(spec.truth, GREEN)
  if (layer === 'difference' && spec.truth) return differenceOf(spec)
  if (layer === 'probability' && spec.prob) return image(spec.prob, [0.05, 1], 'doubt')
  return null
}

// One canvas --------------------------------------------------------------------------------------------------------

async function pane(id) {
  const nv = new Niivue({
    isResizeCanvas: true, isRadiologicalConvention: true, dragAndDropEnabled: false, loadingText: '', logLevel: 'error',
    backColor: [0, 0, 0, 1], crosshairColor: [0.35, 0.78, 0.98, 1], crosshairWidth: 0.7, crosshairWidthUnit: 'mm',
    show3Dcrosshair: true, viewModeHotKey: '', clipPlaneHotKey: '', fontMinPx: 14,
    multiplanarShowRender: SHOW_RENDER.NEVER, multiplanarLayout: MULTIPLANAR_TYPE.ROW, isNearestInterpolation: false,
    isOrientationTextVisible: false, sagittalNoseLeft: true, showAllOrientationMarkers: true,
  })
  await nv.attachToCanvas(byId(id), false)
  nv.addColormap('doubt', { R: [0, 60, 213, 255, 255], G: [0, 0, 60, 170, 245], B: [0, 130, 40, 0, 150],
    A: [0, 110, 170, 200, 220], I: [0, 40, 128, 200, 255] })
  nv.onLocationChange = () => moved(nv)
  return nv
}

async function fill(nv, spec, sequence, layer) { // give a canvas a scan and a layer, where they are others than before
  const source = spec.volumes.find(v => v.id === sequence) ?? spec.volumes[0]
  const [base, top] = await Promise.all([image(source.url, source.window), layerOf(spec, layer)])
  const wanted = top ? [base, top] : [base]
  if (nv.volumes.length === wanted.length && wanted.every((v, i) => nv.volumes[i] === v)) return
  const at = nv.volumes.length ? [...nv.scene.crosshairPos] : null
  nv.volumes = wanted; nv.back = base; nv.overlays = wanted.slice(1)
  nv.uploaded = ''
  nv.opts.isOrientationTextVisible = spec.sides
  nv.scene.crosshairPos = at ?? fraction(nv, spec.start)
  settings(nv) // gives the graphics card both images at once, before anything is drawn
}

function fraction(nv, voxel) { return [0, 1, 2].map(a => (voxel[a] + 0.5) / dims(nv)[a]) }
function dims(nv) { return nv.volumes[0].dimsRAS.slice(1, 4) }
function voxel(nv) { return [...nv.frac2vox(nv.scene.crosshairPos)].map(Math.round) }
function go(nv, to) { // `to`: voxel
  nv.scene.crosshairPos = fraction(nv, to.map((v, a) => Math.min(Math.max(v, 0), dims(nv)[a] - 1)))
  nv.drawScene(); moved(nv)
}

// What the reader sees ----------------------------------------------------------------------------------------------

const VIEWS = ['planes', 'axial', 'coronal', 'sagittal', 'solid', 'beside']
const AXIS = { axial: 2, coronal: 1, sagittal: 0, planes: 2, beside: 2 }
const TYPE = { planes: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL, solid: SLICE_TYPE.RENDER, beside: SLICE_TYPE.AXIAL }
const DRAGS = { cross: DRAG_MODE.crosshair, window: DRAG_MODE.windowing, pan: DRAG_MODE.pan }

function rightSide() { // scan and layer of the second canvas
  if (view.beside === 'reference' && shown.truth) return [shown, 'reference']
  const other = args.other && view.beside === args.other.case ? args.other : null
  return other ? [other, 'mask'] : [shown, 'none']
}

async function draw() {
  const turn = ++drawn
  await fill(left, shown, view.sequence, view.layer)
  const two = view.view === 'beside'
  byId('right').hidden = !two
  if (two) {
    right ??= await pane('right')
    const [spec, layer] = rightSide()
    await fill(right, spec, view.sequence, layer)
  }
  if (turn !== drawn) return
  left.scene.crosshairPos = view.at ?? fraction(left, shown.start)
  for (const nv of two ? [left, right] : [left]) settings(nv)
  if (view.pan) left.scene.pan2Dxyzmm = view.pan
  left.resizeListener(); if (two) right.resizeListener()
  bars(); moved(left)
  document.body.dataset.case = shown.case
}

function settings(nv) {
  const drag = DRAGS[view.drag]
  nv.setMouseEventConfig({ leftButton: { primary: drag, withShift: DRAG_MODE.pan, withCtrl: DRAG_MODE.windowing },
    rightButton: DRAG_MODE.windowing, centerButton: DRAG_MODE.pan })
  nv.setTouchEventConfig({ singleTouch: drag, doubleTouch: DRAG_MODE.pan })
  nv.opts.dragMode = view.drag === 'cross' ? DRAG_MODE.windowing : drag
  nv.overlayOutlineWidth = view.outline ? 1 : 0
  if (nv.volumes[1]) nv.volumes[1].opacity = view.outline ? 1 : view.opacity
  const solid = view.view === 'solid'
  nv.volumes[0].opacity = solid ? 0.5 : 1
  const [low, high] = view.windows[view.sequence] ?? source().window
  nv.volumes[0].cal_min = low; nv.volumes[0].cal_max = high
  const now = [low, high, nv.overlayOutlineWidth, ...nv.volumes.map(v => v.opacity)].join(' ')
  if (now !== nv.uploaded) nv.updateGLVolume()
  nv.uploaded = now
  nv.setSliceType(TYPE[view.view])
}

function source() { return shown.volumes.find(v => v.id === view.sequence) ?? shown.volumes[0] }

let busy = false
function moved(nv) { // one crosshair for both canvases, the readout and the slider
  if (busy || !nv.volumes.length) return
  busy = true
  if (right && !byId('right').hidden && right.volumes.length) {
    const other = nv === left ? right : left
    other.scene.crosshairPos = other.mm2frac(nv.frac2mm(nv.scene.crosshairPos))
    other.scene.pan2Dxyzmm = [...nv.scene.pan2Dxyzmm]
    const window_ = `${nv.volumes[0].cal_min} ${nv.volumes[0].cal_max}`
    if (other.volumes[0] === nv.volumes[0] && (other.drawnWindow ?? window_) !== window_) other.updateGLVolume()
    other.drawnWindow = window_
    other.drawScene()
  }
  view.at = [...left.scene.crosshairPos]; view.pan = [...left.scene.pan2Dxyzmm]
  view.windows[view.sequence] = [left.volumes[0].cal_min, left.volumes[0].cal_max]
  readout()
  busy = false
}

function number(v, digits) {
  return v.toLocaleString(args.lang, { maximumFractionDigits: digits, minimumFractionDigits: digits })
}

// Slices are counted as in the files: from the lowest, from the front, from the patient's right
function count(axis, v) { return axis === 2 ? v[2] + 1 : dims(left)[axis] - v[axis] }

async function readout() {
  const v = voxel(left), mm = left.frac2mm(left.scene.crosshairPos), axis = AXIS[view.view]
  const parts = []
  if (axis !== undefined) parts.push(texts.slice_of.replace('{plane}', texts[['sagittal', 'coronal', 'axial'][axis]])
    .replace('{k}', count(axis, v)).replace('{n}', dims(left)[axis]))
  if (shown.sides) parts.push([['R', 'L'], ['A', 'P'], ['S', 'I']].map(([up, down], a) =>
    `${texts.letters['RLAPSI'.indexOf(mm[a] < 0 ? down : up)]} ${number(Math.abs(mm[a]), 1)}`).join(' · ') + ' mm')
  const level = left.volumes[0].getValue(...v)
  parts.push(`${source().name} ${number(level, Math.abs(level) < 10 && level % 1 ? 3 : 0)}`)
  const prob = await image(shown.prob, [0.05, 1], 'doubt')
  parts.push(`${texts.probability} ${number(prob.getValue(...v), 2)}`)
  byId('readout').replaceChildren(...parts.map(p => Object.assign(document.createElement('span'), { textContent: p })))
  const slider = byId('slice')
  byId('scroll').hidden = axis === undefined
  if (axis === undefined) return
  slider.max = dims(left)[axis]; slider.value = count(axis, v)
  slider.setAttribute('aria-valuetext', parts[0])
}

async function bars() { // lesion area of each slice, above the slider
  const axis = AXIS[view.view], canvas = byId('bars')
  if (axis === undefined || !shown.mask) return
  const [nx, ny, nz] = dims(left), areas = new Array([nx, ny, nz][axis]).fill(0)
  const mask = (await maskOf(shown.mask, RED)).img
  for (let z = 0, i = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, i++)
    if (mask[i]) areas[axis === 2 ? z : axis === 1 ? ny - 1 - y : nx - 1 - x]++
  const most = Math.max(1, ...areas)
  canvas.width = canvas.clientWidth * 2; canvas.height = 36
  const pen = canvas.getContext('2d'), wide = canvas.width / areas.length
  pen.fillStyle = `rgb(${RED})`
  areas.forEach((a, k) => pen.fillRect(k * wide, 36 - 36 * a / most, Math.max(1, wide - 1), 36 * a / most))
}

// Tools -------------------------------------------------------------------------------------------------------------

function element(tag, properties, ...children) {
  const e = Object.assign(document.createElement(tag), properties)
  e.append(...children)
  return e
}

function choice(name, options, labels) {
  const box = element('select', { id: name, onchange: () => { view[name] = box.value; tools(); draw() } },
    ...options.map((value, i) => element('option', { value, textContent: labels[i], selected: value === view[name] })))
  box.setAttribute('aria-label', texts[name]); box.title = texts[name]
  return box
}

function button(id, sign, onclick) {
  const b = element('button', { id, type: 'button', textContent: sign, title: texts[id], onclick })
  b.setAttribute('aria-label', texts[id])
  return b
}

function beside() { // what stands on the right
  const options = ['plain', ...(shown.truth ? ['reference'] : []), ...args.others.map(o => o.case)]
  if (!options.includes(view.beside)) view.beside = options[shown.truth ? 1 : 0]
  const labels = options.map(o => texts[o] ?? args.others.find(c => c.case === o).title)
  const box = choice('beside', options, labels)
  box.onchange = () => { view.beside = box.value; ask(); draw() }
  box.hidden = view.view !== 'beside'
  return box
}

function ask() { // the server gives another case when it stands beside this one
  const other = args.others.find(o => o.case === view.beside)
  if (view.view === 'beside' && other && args.other?.case !== other.case) answer({ beside: other.case })
}

function tools() {
  const focus = document.activeElement?.id
  const layers = ['mask', 'probability', ...(shown.truth ? ['reference', 'difference'] : []), 'none']
  if (!layers.includes(view.layer)) view.layer = 'mask'
  const opacity = element('input', { id: 'opacity', type: 'range', min: 0, max: 100, value: view.opacity * 100,
    oninput: e => {
      view.opacity = e.target.value / 100
      settings(left); if (right && view.view === 'beside') settings(right)
    } })
  const outline = element('input', { id: 'outline', type: 'checkbox', checked: view.outline,
    onchange: e => { view.outline = e.target.checked; tools(); draw() } })
  opacity.disabled = view.outline
  byId('tools').replaceChildren(
    choice('view', VIEWS, VIEWS.map(v => texts[v])), beside(),
    ...(shown.volumes.length > 1
      ? [choice('sequence', shown.volumes.map(v => v.id), shown.volumes.map(v => v.name))] : []),
    choice('layer', layers, layers.map(l => texts[l])),
    element('label', {}, outline, texts.outline), element('label', {}, texts.opacity + ' ', opacity),
    choice('drag', Object.keys(DRAGS), Object.keys(DRAGS).map(d => texts['drag_' + d])),
    button('reset', '\u21ba', reset), button('save', '\u2913', save))
  byId('tools').hidden = false
  byId('tools').setAttribute('aria-label', texts.tools)
  if (focus) byId(focus)?.focus()
}

function reset() {
  Object.assign(view, { at: null, pan: null, windows: {} })
  left.setPan2Dxyzmm([0, 0, 0, 1])
  draw()
}

function save() { left.drawScene(); left.saveScene('neuroseg_view.png') }

function fresh(spec) {
  return { view: window.innerWidth < 640 ? 'axial' : 'planes', sequence: 'flair',
    layer: spec.truth ? 'difference' : 'mask',
    outline: false, opacity: 0.45, drag: 'cross', beside: '', windows: {}, at: null, pan: null }
}

// What the page gives -----------------------------------------------------------------------------------------------

async function show(given) {
  const truthBefore = shown?.case === given.shown.case ? shown.truth : given.shown.truth
  args = given; texts = given.texts; shown = given.shown
  document.documentElement.lang = given.lang
  if (!views.has(shown.case)) views.set(shown.case, fresh(shown))
  view = views.get(shown.case)
  if (shown.truth && !truthBefore) view.layer = 'difference'
  byId('left').setAttribute('aria-label', shown.title + ': ' + texts.canvas)
  byId('right').setAttribute('aria-label', texts.right_canvas)
  byId('slice').setAttribute('aria-label', texts.slice)
  left ??= await pane('left')
  tools(); ask()
  await draw()
}

function theme(t) {
  if (!t) return
  const root = document.documentElement.style
  for (const [name, colour] of [['--ink', t.textColor], ['--paper', t.backgroundColor],
    ['--field', t.secondaryBackgroundColor], ['--accent', t.primaryColor]]) if (colour) root.setProperty(name, colour)
}

function height() { // the picture and the numbers above it are seen together
  const seen = window.parent.innerHeight, narrow = window.innerWidth < 640
  const wide = Math.max(380, Math.min(900, seen - args.above))
  say('setFrameHeight', { height: narrow ? Math.max(360, seen * 0.62) : wide })
}

let last = ''
let queue = Promise.resolve()
window.addEventListener('message', ({ data }) => {
  if (data.type !== 'streamlit:render') return
  theme(data.theme)
  if (!hasWebgl2) return answer({ webgl2: false })
  const now = JSON.stringify(data.args)
  if (now === last) return
  last = now; args = data.args
  height()
  queue = queue.then(() => show(data.args)).catch(e => {
    last = ''; byId('readout').textContent = `${data.args.texts.fault} (${e.message})`
  })
})
window.parent.addEventListener('resize', () => args && height())

byId('slice').addEventListener('input', e => {
  const axis = AXIS[view.view], v = voxel(left), k = Number(e.target.value)
  v[axis] = axis === 2 ? k - 1 : dims(left)[axis] - k
  go(left, v)
})

for (const id of ['left', 'right']) {
  byId(id).addEventListener('keydown', e => {
    const axis = AXIS[view.view], step = { ArrowUp: 1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[e.key]
    if (axis === undefined || !step) return
    e.preventDefault(); e.stopPropagation()
    const v = voxel(left); v[axis] += axis === 2 ? step : -step
    go(left, v)
  }, { capture: true })
  for (const kind of ['wheel', 'pointerup', 'mouseup', 'touchmove']) byId(id).addEventListener(kind,
    () => requestAnimationFrame(() => {
      const nv = id === 'left' ? left : right
      if (nv) moved(nv)
    }), { passive: true })
}

// One finger that moves up or down in a single plane changes the slice; a touch without movement sets the crosshair
const FINGER_PX = 10
let finger = null
const canScroll = e => e.touches.length === 1 && view?.drag === 'cross' &&
  ['axial', 'coronal', 'sagittal'].includes(view.view)
byId('left').addEventListener('touchstart', e => {
  finger = canScroll(e) ? e.touches[0].clientY : null
}, { capture: true, passive: true })
byId('left').addEventListener('touchmove', e => {
  if (finger === null || !canScroll(e)) return
  e.preventDefault(); e.stopImmediatePropagation()
  const steps = Math.trunc((finger - e.touches[0].clientY) / FINGER_PX), axis = AXIS[view.view]
  if (!steps) return
  finger -= steps * FINGER_PX
  const v = voxel(left); v[axis] += axis === 2 ? steps : -steps
  go(left, v)
}, { capture: true, passive: false })

const hasWebgl2 = Boolean(document.createElement('canvas').getContext('webgl2'))
say('componentReady', { apiVersion: 1 })
