"""The generated street: its geometry, and a renderer that knows every pixel's class, depth and motion.

World axes, in metres: x right, y up, z along the street. A pixel's ray meets the ground, four rows of walls and any
number of upright rectangles that carry shape masks; the nearest hit wins. Since the point behind each pixel is known,
so is where it was in any other frame: the flow is computed from the geometry, not estimated.
"""

from dataclasses import dataclass

import numpy as np

from input_pipeline.world.shapes import MATERIAL_CLASS, MATERIAL_ID, shapes

# Sky and skyline are this far away (metres): moving the camera does not move them, turning it does.
INFINITY = 1e6
_NEAR = 0.3


@dataclass(frozen=True)
class Panel:
    """An upright rectangle with a shape on it.

    Attributes:
      shape: name of its mask.
      x, y, z: the middle of its lower edge at time 0, metres.
      width, height: metres.
      heading: its turn about the vertical axis in radians; 0 faces the camera, pi/2 runs along the street.
      instance: index into the scene's velocities and paints; the panels of one vehicle share it.
      mirrored: the shape is flipped left to right.
    """

    shape: str
    x: float
    y: float
    z: float
    width: float
    height: float
    heading: float
    instance: int
    mirrored: bool = False


@dataclass(frozen=True)
class WallRow:
    """A row of buildings, fences, hedges and gaps along the street, standing at one x.

    Attributes:
      x: metres.
      edges: `[S+1]` z where one segment ends and the next begins, ascending.
      materials: `[S]` material of each segment, 0 for a gap.
      heights: `[S]` metres.
      window_step: `[S]` metres from window to window.
      instances: `[S]` instance of each segment.
    """

    x: float
    edges: np.ndarray
    materials: np.ndarray
    heights: np.ndarray
    window_step: np.ndarray
    instances: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A street with everything in it, at every time.

    Attributes:
      size: `(H, W)` of its frames.
      horizon: row of the horizon when the camera looks straight ahead.
      focal: focal length in pixels.
      track: `[F, 5]` the camera at each time: x, y, z (metres), yaw, pitch (radians).
      band_edges: `[N-1]` x where the ground changes, ascending.
      band_materials: `[N]` material of the ground between these edges.
      lines: lane marks as `(x, width, dash)`: dash 0 is a solid line, otherwise half the length of its period.
      crossing: `(z0, z1)` of a street that crosses, `z0 == z1` for none.
      rows: rows of walls.
      skyline: `[A]` heights of the skyline (tangent of the elevation) over the viewing directions -1.5 to 1.5 (x/z).
      skyline_materials: `[A]`.
      panels: upright rectangles.
      velocity: `[I, 3]` metres per frame of each instance; instance 0 is the ground and the sky.
      paint: `[I, 3]` RGB of each instance's own paint, 0-255.
    """

    size: tuple[int, int]
    horizon: float
    focal: float
    track: np.ndarray
    band_edges: np.ndarray
    band_materials: np.ndarray
    lines: tuple[tuple[float, float, float], ...]
    crossing: tuple[float, float]
    rows: tuple[WallRow, ...]
    skyline: np.ndarray
    skyline_materials: np.ndarray
    panels: tuple[Panel, ...]
    velocity: np.ndarray
    paint: np.ndarray


@dataclass(frozen=True)
class View:
    """What the camera sees at one time.

    Attributes:
      time: index into the scene's track.
      materials: `[H, W]` uint8.
      instances: `[H, W]` int32.
      depth: `[H, W]` float32 metres along the viewing direction.
      rays: `[H, W, 3]` float32 world direction of each pixel: `depth * rays` is its point, seen from the camera.
      surface: `[H, W, 2]` float32 metres on the surface that is seen: a texture read there moves with the surface.
    """

    time: int
    materials: np.ndarray
    instances: np.ndarray
    depth: np.ndarray
    rays: np.ndarray
    surface: np.ndarray

    @property
    def classes(self):
        """`[H, W]` uint8, indices into `WORLD_CLASSES`."""
        return MATERIAL_CLASS[self.materials]


def _camera(scene, time):
    """Returns the camera's position `[3]` and the rotation `[3, 3]` from its axes (right, up, ahead) to the world's."""
    x, y, z, yaw, pitch = scene.track[time]
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[cos_yaw, 0, sin_yaw], [0, 1, 0], [-sin_yaw, 0, cos_yaw]])
    tilt = np.array([[1, 0, 0], [0, cos_pitch, -sin_pitch], [0, sin_pitch, cos_pitch]])
    return np.array([x, y, z]), turn @ tilt


def _pixel_rays(scene):
    """Returns `[H, W, 3]` float32 directions in camera axes with z = 1, through the pixel centres."""
    h, w = scene.size
    rays = np.ones((h, w, 3), np.float32)
    rays[..., 0] = (np.arange(w) - (w - 1) / 2) / scene.focal
    rays[..., 1] = -((np.arange(h) - scene.horizon) / scene.focal)[:, None]
    return rays


class _Buffer:
    """Depth-tested writing of materials, instances and surface coordinates."""

    def __init__(self, shape):
        self.depth = np.full(shape, INFINITY, np.float32)
        self.materials = np.full(shape, MATERIAL_ID["sky"], np.uint8)
        self.instances = np.zeros(shape, np.int32)
        self.surface = np.zeros((*shape, 2), np.float32)

    def write(self, window, hit, depth, materials, instances, along, up):
        """Writes where `hit` holds and the depth is smaller than what is there; arrays cover `window` only."""
        nearer = hit & (depth < self.depth[window])
        self.depth[window][nearer] = depth[nearer]
        self.materials[window][nearer] = materials[nearer] if isinstance(materials, np.ndarray) else materials
        self.instances[window][nearer] = instances[nearer] if isinstance(instances, np.ndarray) else instances
        self.surface[window][nearer] = np.stack([along[nearer], up[nearer]], axis=-1)


def _draw_sky(buffer, scene, dx, dy, dz):
    across, up = dx / dz, dy / dz
    slot = np.clip((across + 1.5) / 3 * len(scene.skyline), 0, len(scene.skyline) - 1).astype(np.int32)
    below = up < scene.skyline[slot]
    buffer.materials[below] = scene.skyline_materials[slot][below]
    buffer.surface[..., 0] = across
    buffer.surface[..., 1] = up


def _draw_ground(buffer, scene, position, dx, dy, dz):
    # Rays that hardly fall meet the ground beyond the skyline: the horizon hides them.
    falling = dy < -1e-3
    depth = np.where(falling, -position[1] / np.where(falling, dy, -1), INFINITY).astype(np.float32)
    x, z = depth * dx + position[0], depth * dz + position[2]
    materials = scene.band_materials[np.searchsorted(scene.band_edges, x)]
    z0, z1 = scene.crossing
    on_crossing = (z > z0) & (z < z1)
    road = materials == MATERIAL_ID["asphalt"]
    mark = np.zeros_like(road)
    for line, width, dash in scene.lines:
        here = np.abs(x - line) < width / 2
        mark |= here if dash == 0 else here & (np.mod(z, 2 * dash) < dash)
    mark &= ~on_crossing
    if z1 > z0:
        zebra = (z > z0 - 3.4) & (z < z0 - 0.9)
        mark = np.where(zebra, np.mod(x, 1.0) < 0.5, mark)
        materials = np.where(on_crossing, np.uint8(MATERIAL_ID["asphalt"]), materials)
    materials = np.where(mark & road, np.uint8(MATERIAL_ID["mark"]), materials)
    buffer.write(np.s_[:, :], falling, depth, materials, 0, x, z)


def _draw_row(buffer, row, position, dx, dy, dz):
    # Only the columns on the wall's side can meet it.
    columns = np.flatnonzero((dx[0] > 1e-3) if row.x > position[0] else (dx[0] < -1e-3))
    if not len(columns):
        return
    window = np.s_[:, columns[0] : columns[-1] + 1]
    dx, dy, dz = dx[window], dy[window], dz[window]
    depth = (row.x - position[0]) / dx
    y, z = depth * dy + position[1], depth * dz + position[2]
    segment = np.clip(np.searchsorted(row.edges, z) - 1, 0, len(row.materials) - 1)
    materials, heights = row.materials[segment], row.heights[segment]
    green = (materials == MATERIAL_ID["hedge"]) | (materials == MATERIAL_ID["leaves"])
    bumps = 0.12 * np.sin(z * 2.1) + 0.1 * np.sin(z * 4.7 + 1)
    heights = np.where(green, heights * (1 + bumps), heights)
    step = row.window_step[segment]
    across, floor = np.mod(z, step) / step, np.mod(y, 3.1) / 3.1
    pane = (across > 0.25) & (across < 0.72) & (floor > 0.32) & (floor < 0.82) & (y < heights - 0.9)
    built = materials == MATERIAL_ID["facade"]
    materials = np.where(built & pane, np.uint8(MATERIAL_ID["window"]), materials)
    materials = np.where(built & (y > heights - 0.5), np.uint8(MATERIAL_ID["cornice"]), materials)
    pillar = (materials == MATERIAL_ID["boards"]) & (np.mod(z, 1.6) < 0.25)
    materials = np.where(pillar, np.uint8(MATERIAL_ID["post"]), materials)
    hit = (depth > _NEAR) & (y >= 0) & (y < heights) & (materials > 0) & (z > row.edges[0]) & (z < row.edges[-1])
    buffer.write(window, hit, depth, materials, row.instances[segment], z, y)


def _panel_window(scene, foot, across, panel, rotation):
    """Returns the rows and columns that a panel can cover, or None: `foot` is relative to the camera."""
    ends = foot + np.array([[-0.5], [0.5]]) * panel.width * across  # [2, 3]
    corners = np.concatenate([ends, ends + [0, panel.height, 0]]) @ rotation  # [4, 3] in camera axes
    h, w = scene.size
    if np.all(corners[:, 2] < _NEAR):
        return None
    if np.any(corners[:, 2] < _NEAR):
        return np.s_[0:h, 0:w]
    columns = corners[:, 0] / corners[:, 2] * scene.focal + (w - 1) / 2
    rows = scene.horizon - corners[:, 1] / corners[:, 2] * scene.focal
    top, bottom = max(0, int(np.floor(rows.min()))), min(h, int(np.ceil(rows.max())) + 1)
    left, right = max(0, int(np.floor(columns.min()))), min(w, int(np.ceil(columns.max())) + 1)
    return np.s_[top:bottom, left:right] if top < bottom and left < right else None


def _draw_panel(buffer, scene, panel, position, rotation, time, dx, dy, dz):
    across = np.array([np.cos(panel.heading), 0, -np.sin(panel.heading)])
    normal = np.array([np.sin(panel.heading), 0, np.cos(panel.heading)])
    foot = np.array([panel.x, panel.y, panel.z]) + scene.velocity[panel.instance] * time - position
    window = _panel_window(scene, foot, across, panel, rotation)
    if window is None:
        return
    dx, dy, dz = dx[window], dy[window], dz[window]
    facing = (normal[0] * dx + normal[2] * dz).astype(np.float32)
    # A ray along the panel never meets it; the tiny slope sends the hit far outside the rectangle.
    depth = np.float32(normal @ foot) / np.where(np.abs(facing) < 1e-6, np.float32(1e-6), facing)
    along = (depth * dx - foot[0]) * across[0] + (depth * dz - foot[2]) * across[2]
    up = depth * dy - foot[1]
    mask = shapes()[panel.shape]
    h, w = mask.shape
    column = np.floor((along / panel.width + 0.5) * w).astype(np.int32)
    row = np.floor((1 - up / panel.height) * h).astype(np.int32)
    hit = (depth > _NEAR) & (column >= 0) & (column < w) & (row >= 0) & (row < h)
    column = np.clip(w - 1 - column if panel.mirrored else column, 0, w - 1)
    materials = mask[np.clip(row, 0, h - 1), column]
    buffer.write(window, hit & (materials > 0), depth, materials, panel.instance, along, up)


def render(scene, time):
    """Casts one ray through each pixel centre.

    Args:
      scene: the street.
      time: index into its camera track.

    Returns:
      The `View` at that time.
    """
    position, rotation = _camera(scene, time)
    rays = _pixel_rays(scene) @ rotation.T.astype(np.float32)
    dx, dy, dz = (np.ascontiguousarray(rays[..., axis]) for axis in range(3))
    position = position.astype(np.float32)
    buffer = _Buffer(scene.size)
    _draw_sky(buffer, scene, dx, dy, dz)
    _draw_ground(buffer, scene, position, dx, dy, dz)
    for row in scene.rows:
        _draw_row(buffer, row, position, dx, dy, dz)
    for panel in scene.panels:
        _draw_panel(buffer, scene, panel, position, rotation, time, dx, dy, dz)
    return View(time, buffer.materials, buffer.instances, buffer.depth, rays, buffer.surface)


def exact_flow(scene, view, earlier):
    """Computes where each pixel's point was in another frame, from the geometry.

    Args:
      scene: the street that `view` shows.
      view: the current frame; the flow lies on its grid.
      earlier: time of the other frame.

    Returns:
      `[H, W, 2]` float32 (u, v) in pixels: the point seen at (x, y) was at (x + u, y + v), in the frame or outside it,
      and there hidden or not.
    """
    position, _ = _camera(scene, view.time)
    earlier_position, earlier_rotation = _camera(scene, earlier)
    points = view.depth[..., None] * view.rays + (position - earlier_position).astype(np.float32)  # [H, W, 3]
    moved = (scene.velocity * (earlier - view.time)).astype(np.float32)  # [I, 3]
    points = (points + moved[view.instances]) @ earlier_rotation.astype(np.float32)
    distance = np.maximum(points[..., 2], _NEAR)
    h, w = scene.size
    x = points[..., 0] / distance * scene.focal + (w - 1) / 2
    y = scene.horizon - points[..., 1] / distance * scene.focal
    return np.stack([x - np.arange(w), y - np.arange(h)[:, None]], axis=-1).astype(np.float32)
