"""What do we learn to draw when nothing has been downloaded?  Small woven textiles, made here.

Every picture is one of twelve motifs in four colours.  A motif is a function of the thread
coordinates (x, y) that answers "which of the four yarns lies on top here?"; everything is integer
arithmetic, so with one version of NumPy the cloth is the same, byte for byte, on every machine.  Seed and
index alone decide an image, and a larger size is a larger cut of the same cloth.

Read `draw` at the end of the file first, then `weave`, then the motifs.
"""

import numpy as np

# Three dark yarns, three light ones.  A motif wears dark, light, dark, light (or the reverse), so that
# yarns of neighbouring numbers, 3 and 0 included, contrast: no choice below can come out muddy.
PALETTES = (
    ("1d2b53 27476e 7b2d26", "f4ead5 e9b44c 9cc5c9"),  # indigo
    ("1a1a1a b3261e 1e6b3a", "f5b82e fbeed3 f7a652"),  # kente
    ("2b1d14 4a2f1d 7a3b1e", "efe3cb d9b382 d9a441"),  # mudcloth
    ("8c1c3a 3b1f4d 0f5257", "f6d8ae f2a33a f09cb0"),  # andean
    ("7a1e1e 1f3a5f 3f4a2a", "e8d5b0 e0a15c a9c0a6"),  # kilim
    ("0e3b43 5a1a50 9e2b25", "f7f0e0 f4c95d 8fd0c0"),  # ikat
    ("6a2c1a a43e1f 2e3d49", "f3dfc1 e8b06e c8d2c4"),  # desert
    ("0b3c49 1a5a66 7d2e46", "7fcac3 f5efe0 f3b562"),  # lagoon
    ("4b1535 96204f 22577a", "ffc145 fff1d0 f7a278"),  # marigold
    ("1f3d2b 3a5a40 6b2737", "e6e0cf a9bf92 e9b872"),  # forest
    ("2d2a6e a81e4f 00626b", "ffd166 fbe9d7 f7a793"),  # bazaar
    ("14213d 8d1b2b 2f5d62", "ece8dd f5b041 a8c8dc"),  # fjord
)


def fold(t, p):
    """Mirror a coordinate: its distance from the centre of its tile of p pixels, in half pixels (1, 3 .. p - 1)."""
    return abs(2 * (t % p) + 1 - p)


# --- Motifs: x (1, W) and y (H, 1) integer pixels, p = 16 or 32 the period -> yarn 0..3, (H, W) ---


def stripes(x, y, p, rng):
    """Bands of unequal width, mirrored about the middle of the period."""
    cuts = 2 + 2 * np.sort(rng.permutation(p // 4 - 1)[:3])
    return sum(fold(x, p) > 2 * cut for cut in cuts) + 0 * y


def zigzag(x, y, p, rng):
    """Chevrons of two or four yarns."""
    band, count, phase = 4 << rng.integers(2), 2 << rng.integers(2), 4 * rng.integers(8)
    return (fold(x, p) // 2 + y + phase) // band % count


def diamonds(x, y, p, rng):
    """Nested lozenges, upright or twice as tall as wide."""
    tall, rings = 1 + rng.integers(p // 16), 4 + 4 * rng.integers(p // 16)
    return (tall * fold(x, p // tall) + fold(y, p)) * rings // (2 * p) % 4


def checks(x, y, p, rng):
    """Gingham: one crossing of two bands is dark, the other light; sometimes with a fine line in every window."""
    a, b = fold(x, p // 2), fold(y, p // 2)
    cloth = (4 * a < p) * 1 + (4 * b < p)
    return np.where(np.minimum(a, b) < p // 16 * rng.integers(2), 3, cloth)


def kente(x, y, p, rng):
    """Blocks whose stripes run across and along in turn."""
    p, bands = p // 2, p // 8
    across = (x // p + y // p) % 2 == 0
    return np.where(across, fold(y, p) * bands // p, 3 - fold(x, p) * bands // p)


def rosettes(x, y, p, rng):
    """Flowers with a round heart and four petals, the large ones also turned by 45 degrees."""
    a, b = fold(x, p), fold(y, p)
    heart = a * a + b * b
    if rng.integers(p // 16):
        a, b = (a + b) * 5 // 7, abs(a - b) * 5 // 7
    petal = (np.maximum(a, b) - p // 2) ** 2 + np.minimum(a, b) ** 2 < (p // 2 - 1) ** 2
    return np.where(heart * 9 < p * p, 2 + (heart * 36 < p * p), petal)


def stars(x, y, p, rng):
    """Eight-pointed stars, a square over a square on its corner, with smaller stars within."""
    a, b = fold(x, p), fold(y, p)
    reach = np.minimum(np.maximum(a, b) * 8 // 5, a + b)
    return (reach < p) * 1 + (reach * 8 < p * 5) + (reach * 3 < p)


def scales(x, y, p, rng):
    """Fish scales: every row of discs covers the lower half of the row behind it."""
    w, h = 16, p // 2
    row, below = y // h, (2 * (y % h) + 1) * 8 // h  # below the top of the row, on the scale of fold
    front = fold(x + (row + 1) % 2 * 8, w) ** 2 + (w - below) ** 2
    behind = fold(x + row % 2 * 8, w) ** 2 + below**2
    r2 = np.where(front < w * w, front, behind)
    return sum(r2 > ring * ring for ring in (4, 8, 12))


def steps(x, y, p, rng):
    """Pyramids of four steps, low or tall, or mirrored into the Andean stepped cross."""
    if rng.integers(2):
        level, w = y % p * 4 // p, 32
    else:
        level, w = 3 - fold(y, p) * 4 // p, p
    return np.clip(1 + level - fold(x, w) * 4 // w, 0, 3)


def crosses(x, y, p, rng):
    """Equal-armed crosses with a heart, and a dot in every corner or an outline."""
    a, b = fold(x, p), fold(y, p)
    far = np.maximum(a, b)
    reach = np.maximum(np.minimum(a, b) + p // 2, far) * 4 // p  # 2: the cross, 3: its outline
    if rng.integers(p // 16):
        return np.where(far * 4 < p, 3, np.clip(4 - reach, 0, 2))
    dot = np.minimum(a, b) * 4 > 3 * p
    return np.where(dot, 3, (reach < 3) * 1 + (far * 4 < p))


def houndstooth(x, y, p, rng):
    """No drawing but a weave: dark and light threads in turn each way, in a two-by-two twill."""
    p, x = 16, x + p // 4 * rng.integers(4)
    warp, weft, twill = 2 * (x % p) < p, 2 * (y % p) < p, 4 * ((x - y) % (p // 2)) < p
    return np.where(twill, warp, weft) * 1


def triangles(x, y, p, rng):
    """Rows of triangles, each row in the two yarns that contrast with the row before."""
    h, drop = 16 // (1 + rng.integers(32 // p)), p // 2 * rng.integers(2)
    odd = y // h % 2
    inside = fold(x + odd * drop, p) * 2 * h < (2 * (y % h) + 1) * p
    return inside + 2 * odd


MOTIFS = {
    "stripes": stripes,
    "zigzag": zigzag,
    "diamonds": diamonds,
    "checks": checks,
    "kente": kente,
    "rosettes": rosettes,
    "stars": stars,
    "scales": scales,
    "steps": steps,
    "crosses": crosses,
    "houndstooth": houndstooth,
    "triangles": triangles,
}
CLASSES = tuple(MOTIFS)


def yarns(rng, dyed):
    """Four colours (4, 3) of one palette, dark and light in turn, each dyed by hand: no two lots are quite the same."""
    dark, light = PALETTES[rng.integers(len(PALETTES))]
    dark, light = rng.permutation(dark.split()), rng.permutation(light.split())
    order = (dark[0], light[0], dark[1], light[1]) if rng.integers(2) else (light[0], dark[0], light[1], dark[1])
    rgb = np.array([list(bytes.fromhex(colour)) for colour in order])
    return np.clip(rgb + dyed * rng.integers(-6, 7, (4, 3)), 0, 255)


def weave(index, seed, size, dyed=True):
    """Image `index` of the cloth `seed`: pixels uint8 (3, H, W) and label."""
    rng = np.random.default_rng([seed, index])
    label = rng.integers(len(CLASSES))
    colours = yarns(rng, dyed)
    p = 16 << rng.integers(2)
    y, x = np.ogrid[: size[0], : size[1]]
    shade = 97 + 6 * ((x + y) % 2)  # over and under: every second crossing catches the light, by 3 %
    turn, flip = rng.integers(2, size=2)
    if flip:
        y = 31 - y  # every period divides 32, so the motif stays centred
    if turn:
        x, y = y, x
    top = MOTIFS[CLASSES[label]](x, y, p, rng)
    pixels = np.minimum(colours[top] * shade[..., None] // 100, 255)
    return pixels.transpose(2, 0, 1).astype(np.uint8), label


def draw(n, seed=0, size=(32, 32), dyed=True):
    """Weave n pictures.

    n: number of images; seed: of the collection; size: (H, W) in pixels, at least (4, 4); dyed: False leaves out the
    small differences of colour, so that twins, which differ in nothing else, come out equal.
    Returns pixels uint8 (n, 3, H, W) and labels int64 (n,), indices into CLASSES.
    """
    pixels, labels = np.empty((n, 3, *size), np.uint8), np.empty(n, np.int64)
    for i in range(n):
        pixels[i], labels[i] = weave(i, seed, size, dyed)
    return pixels, labels
