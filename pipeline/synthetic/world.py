"""A synthetic world of ten motions whose optical flow is known exactly.

Textured bodies move over textured backgrounds. Textures are sums of a few plane waves, so they are evaluated at any
point without interpolation, and the flow follows from the bodies' poses alone. The motions are the ten of Wu et al.
(2026); their cartoon versions break one law of physics each, with the same looks.

Position, size, direction, speed, shape and colours are drawn independently of the motion: gravity points anywhere (as
if the camera were turned), the centre of every trajectory is placed uniformly, and every trajectory is scaled to a mean
speed drawn from one distribution. Neither looks nor the place of the mask name the class; the amount of motion hardly
does (how the speed is spread over time and over the body is what a motion is).

Lengths are in units of half the frame's shorter side, y points down, time is in frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.synthetic.trajectories import TRAJECTORIES, Floats, poses_of, to_speed, trajectory_of

Array = npt.NDArray[np.float32]

MOTIONS = ("bounce", "compress", "explode", "float", "free_fall", "roll", "slide", "spin", "stretch", "swing")
CARTOONS = ("bounce", "explode", "free_fall", "roll", "slide", "spin", "swing")
SPEED = (0.03, 0.08)  # mean speed of a body's points, units a frame: at 32 pixels 0.5 to 1.3 pixels a frame
RADIUS = (0.24, 0.42)

VERBS = {
    "bounce": "bouncing",
    "compress": "being compressed",
    "explode": "exploding",
    "float": "floating",
    "free_fall": "falling freely",
    "roll": "rolling",
    "slide": "sliding",
    "spin": "spinning",
    "stretch": "being stretched",
    "swing": "swinging",
}
COLOURS = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.7, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.9, 0.8, 0.15),
    "purple": (0.6, 0.2, 0.75),
    "orange": (0.95, 0.5, 0.1),
    "white": (0.85, 0.85, 0.85),
    "black": (0.18, 0.18, 0.18),
}
_SHAPES = {"ball": (2.0, 0, 0.0), "box": (6.0, 0, 0.0), "flower": (2.0, 5, 0.22), "star": (2.0, 3, 0.28)}


@dataclass(frozen=True)
class Texture:
    """Colour of a point: ``base + sum_i amplitude_i * sin(wave_i . point + phase_i)``."""

    base: Floats  # [3]
    wave: Floats  # [n, 2], radians per unit
    phase: Floats  # [n]
    amplitude: Floats  # [n, 3]

    def __call__(self, points: Floats) -> Floats:
        """[..., 2] points -> [..., 3] colours, not clipped."""
        colours: Floats = self.base + np.sin(points @ self.wave.T + self.phase) @ self.amplitude
        return colours


@dataclass(frozen=True)
class Body:
    """A textured shape and its pose in every frame: x, y, angle, scale along its own x axis, scale along its y axis."""

    texture: Texture
    radius: float
    power: float  # exponent of the superellipse
    lobes: int
    depth: float  # how deep the lobes cut
    poses: Floats  # [frames, 5]


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip. `camera` is x, y, zoom in every frame; `kind` names its source folder."""

    name: str
    kind: str  # real, cartoon, still, camera
    motion: str  # one of MOTIONS, or "" where nothing moves by itself
    caption: str
    background: Texture
    bodies: tuple[Body, ...]
    camera: Floats  # [frames, 3]
    fps: int

    @property
    def frames(self) -> int:
        return len(self.camera)


def _explosion(body: Body, t: Floats, speed: float, rng: np.random.Generator, cartoon: bool) -> tuple[Body, ...]:
    """Pieces of a body flying apart, slowed by drag; in the cartoon they gather speed instead."""
    pieces = 6
    spread = to_speed(t**2 if cartoon else 1 - np.exp(-2.0 * t), speed)
    first = rng.uniform(0, 2 * np.pi)
    bodies = []
    for i in range(pieces):
        away = first + 2 * np.pi * (i + rng.uniform(-0.2, 0.2)) / pieces
        heading = np.array([np.cos(away), np.sin(away)])
        distance = (0.55 * body.radius + spread * rng.uniform(0.8, 1.2))[:, None]
        poses = body.poses.copy()
        poses[:, :2] = body.poses[:1, :2] + distance * heading
        poses[:, 2] += rng.uniform(-0.1, 0.1) * t
        bodies.append(Body(body.texture, 0.42 * body.radius, 2.0, 0, 0.0, poses))
    return tuple(bodies)


# --- looks ------------------------------------------------------------------------------------------------------------


def texture(
    rng: np.random.Generator, base: Floats, cycles: tuple[float, float], contrast: float, n: int = 5
) -> Texture:
    """A random texture about a base colour; `cycles` bounds the waves' cycles per unit."""
    heading, pace = rng.uniform(0, 2 * np.pi, n), rng.uniform(*cycles, n) * 2 * np.pi
    wave = np.stack([np.cos(heading) * pace, np.sin(heading) * pace], 1)
    grey, tint = rng.normal(0, 1, (n, 1)), rng.normal(0, 0.5, (n, 3))
    return Texture(base, wave, rng.uniform(0, 2 * np.pi, n), contrast * (grey + tint) / np.sqrt(n))


def _looks(rng: np.random.Generator) -> tuple[str, Texture, Texture, tuple[float, int, float]]:
    colour, shape = rng.choice(list(COLOURS)), rng.choice(list(_SHAPES))
    base = np.asarray(COLOURS[colour])
    ground = rng.uniform(0.25, 0.75, 3)
    if np.abs(ground - base).mean() < 0.2:  # a body must stand out from its background
        ground = np.where(base > 0.5, base - 0.4, base + 0.4).clip(0.15, 0.85)
    back = texture(rng, ground, (0.15, 1.1), 0.12)
    return f"{colour} {shape}", back, texture(rng, base, (0.6, 2.0), 0.16), _SHAPES[shape]


def scene(
    seed: int,
    name: str,
    kind: str = "real",
    motion: str = "",
    frames: int = 9,
    fps: int = 8,
    pan: float = 0.1,
    speeds: tuple[float, float] = SPEED,
) -> Scene:
    """The scene that (seed, name) determine. `pan` is the chance that the camera moves slowly as well.

    Raises ValueError for a motion or kind that the world does not know.
    """
    if kind not in ("real", "cartoon", "still", "camera"):
        raise ValueError(f"kind={kind!r}: use real, cartoon, still or camera")
    motions = {"real": MOTIONS, "cartoon": CARTOONS}.get(kind, ("",))
    if motion not in motions:
        raise ValueError(f"motion={motion!r} for kind={kind!r}: use one of {', '.join(motions)}")
    rng = np.random.default_rng([seed, *name.encode()])
    looks, background, surface, (power, lobes, depth) = _looks(rng)
    radius, direction = rng.uniform(*RADIUS), rng.uniform(0, 2 * np.pi)
    centre, speed = rng.uniform(-0.4, 0.4, 2), rng.uniform(*speeds)
    t = np.linspace(0.0, 1.0, frames)
    still = poses_of(trajectory_of(np.zeros(frames)), direction, centre)
    body = Body(surface, radius, power, lobes, depth, still)
    bodies: tuple[Body, ...] = (body,)
    if motion == "explode":
        bodies = _explosion(body, t, speed, rng, kind == "cartoon")
    elif motion:
        trajectory = TRAJECTORIES[motion](t, speed, radius, rng, kind == "cartoon")
        bodies = (Body(surface, radius, power, lobes, depth, poses_of(trajectory, direction, centre)),)
    moves = kind == "camera" or (bool(motion) and rng.uniform() < pan)
    camera = _camera(rng, t, speed if kind == "camera" else 0.4 * speed) if moves else _camera(rng, t, 0.0)
    caption = f"a {looks} {VERBS[motion]}" if motion else f"a {looks} standing still"
    return Scene(name, kind, motion, caption, background, bodies, camera, fps)


def _camera(rng: np.random.Generator, t: Floats, speed: float) -> Floats:
    heading, zoom = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
    reach = speed * (len(t) - 1) * (t - 0.5)
    stays = speed == 0.0
    return np.column_stack([reach * np.cos(heading), reach * np.sin(heading), 1 + (0.0 if stays else zoom) * t])


def corpus(seed: int, count: int, frames: int = 9) -> list[Scene]:
    """`count` scenes: about 62 % real motions, 23 % cartoons, 8 % still, 7 % camera moves; the first n do not depend on
    `count`."""
    return [scene(seed, name, kind, motion, frames) for name, kind, motion in labels(seed, count)]


def labels(seed: int, count: int) -> list[tuple[str, str, str]]:
    """Name, kind and motion of every scene of a corpus."""
    rows = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        kind = str(rng.choice(("real", "cartoon", "still", "camera"), p=(0.62, 0.23, 0.08, 0.07)))
        motion = str(rng.choice({"real": MOTIONS, "cartoon": CARTOONS}.get(kind, ("",))))
        rows.append((f"{i:06d}", kind, motion))
    return rows


def queries(seed: int, each: int, frames: int = 9) -> list[Scene]:
    """`each` clean scenes of every motion, from a still camera."""
    return [scene(seed, name, "real", motion, frames, pan=0.0) for name, motion in query_labels(each)]


def query_labels(each: int) -> list[tuple[str, str]]:
    """Name and motion of `each` scenes of every motion."""
    return [(f"{motion}-{i:02d}", motion) for motion in MOTIONS for i in range(each)]


# --- pictures and flow ------------------------------------------------------------------------------------------------


def _grid(height: int, width: int) -> tuple[Floats, float]:
    half = min(height, width) / 2
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    return np.stack([(x + 0.5 - width / 2) / half, (y + 0.5 - height / 2) / half], -1), half


def _inside(body: Body, points: Floats, frame: int) -> Floats:
    """World points [..., 2] -> the body's own coordinates, in which it rests."""
    x, y, angle, grow, widen = body.poses[frame]
    c, s = np.cos(angle), np.sin(angle)
    d = points - (x, y)
    return np.stack([(c * d[..., 0] + s * d[..., 1]) / grow, (-s * d[..., 0] + c * d[..., 1]) / widen], -1)


def _outside(body: Body, points: Floats, frame: int) -> Floats:
    x, y, angle, grow, widen = body.poses[frame]
    c, s = np.cos(angle), np.sin(angle)
    u, v = points[..., 0] * grow, points[..., 1] * widen
    return np.stack([x + c * u - s * v, y + s * u + c * v], -1)


def _cover(body: Body, own: Floats, softness: float) -> Floats:
    """Opacity in [0, 1] of a body at its own coordinates [..., 2]; the edge is about `softness` units wide."""
    r = (np.abs(own) ** body.power).sum(-1) ** (1 / body.power)
    edge = body.radius * (1 - body.depth * (0.5 + 0.5 * np.cos(body.lobes * np.arctan2(own[..., 1], own[..., 0]))))
    covered: Floats = np.clip((edge - r) / softness + 0.5, 0.0, 1.0)
    return covered


def render(scene: Scene, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Frames [F, height, width, 3], uint8."""
    screen, half = _grid(height, width)
    frames = np.empty((scene.frames, height, width, 3), np.uint8)
    for f in range(scene.frames):
        world = screen * scene.camera[f, 2] + scene.camera[f, :2]
        image = scene.background(world)
        for body in scene.bodies:
            own = _inside(body, world, f)
            opacity = _cover(body, own, 1.5 / half)[..., None]
            image = image * (1 - opacity) + body.texture(own) * opacity
        frames[f] = np.rint(image.clip(0, 1) * 255)
    return frames


def flow(scene: Scene, height: int, width: int) -> Array:
    """Exact forward flow [F-1, height, width, 2] in pixels (x, y): where what a pixel shows in frame f is in f + 1."""
    screen, half = _grid(height, width)
    displacements = np.empty((scene.frames - 1, height, width, 2), np.float32)
    for f in range(scene.frames - 1):
        world = screen * scene.camera[f, 2] + scene.camera[f, :2]
        target = world.copy()
        for body in scene.bodies:
            own = _inside(body, world, f)
            covered = _cover(body, own, 1.5 / half)[..., None] > 0.5
            target = np.where(covered, _outside(body, own, f + 1), target)
        after = (target - scene.camera[f + 1, :2]) / scene.camera[f + 1, 2]
        displacements[f] = (after - screen) * half
    return displacements


def flow_pair(seed: int, name: str, size: int, reach: float = 10.0) -> tuple[npt.NDArray[np.uint8], Array]:
    """A pair of frames [2, size, size, 3] with bodies and camera displaced by up to `reach` / 64 units (10 pixels at
    size 128), and its exact flow [size, size, 2] in pixels: what an optical flow model is trained and judged on."""
    rng = np.random.default_rng([seed, *name.encode()])
    longest = reach / 64
    shift = _disc(rng) * longest * 0.7 * (rng.uniform() < 0.8)
    zoom = 1 + rng.uniform(-0.03, 0.03) * (rng.uniform() < 0.5)
    bodies = []
    for _ in range(rng.integers(1, 4)):
        _, _, surface, (power, lobes, depth) = _looks(rng)
        start = np.array([*rng.uniform(-0.8, 0.8, 2), rng.uniform(0, 6.3), *rng.uniform(0.8, 1.25, 2)])
        radius = rng.uniform(0.2, 0.5)
        turn = rng.uniform(-0.5, 0.5) * longest / radius
        step = np.array([*(_disc(rng) * longest * 0.8 + 0.5 * shift), turn, 0, 0])
        grow = np.array([1, 1, 1, *(1 + rng.uniform(-0.3, 0.3, 2) * longest / radius)])
        bodies.append(Body(surface, radius, power, lobes, depth, np.stack([start, (start + step) * grow])))
    back = texture(rng, rng.uniform(0.2, 0.8, 3), (0.15, rng.choice((1.1, 2.0, 4.0))), rng.uniform(0.08, 0.25), 6)
    camera = np.array([[0, 0, 1], [*shift, zoom]])
    pair = Scene(name, "real", "", "", back, tuple(bodies), camera, 8)
    return render(pair, size, size), flow(pair, size, size)[0]


def _disc(rng: np.random.Generator) -> Floats:
    """A point of the unit disc, its radius uniform."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform()
    return np.array([np.cos(angle), np.sin(angle)]) * radius
