"""Counts of requests for the metrics page, in Prometheus's text format."""

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steerable.app.service import Service

EDGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
STATM = "/proc/self/statm"
PAGE = 4096


class Counts:
    """Requests by route and status, and how long they took."""

    def __init__(self):
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._took: dict[str, list[int]] = defaultdict(lambda: [0] * (len(EDGES) + 1))
        self._seconds: dict[str, float] = defaultdict(float)

    def add(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        with self._lock:
            self._requests[route, status] += 1
            self._took[route][sum(seconds > edge for edge in EDGES)] += 1
            self._seconds[route] += seconds

    def text(self, service: "Service") -> str:
        """The page."""
        door = service.door
        lines = [
            *_plain("encoder_waiting", "gauge", door.waiting),
            *_plain("encoder_turns_total", "counter", door.served),
            *_plain("encoder_refused_total", "counter", door.refused),
            *_plain("encoder_seconds_total", "counter", door.seconds),
            *_plain("gallery_rows", "gauge", service.gallery.rows),
            *_plain("memory_bytes", "gauge", memory()),
            "# TYPE steerable_requests_total counter",
        ]
        with self._lock:
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'steerable_requests_total{{route="{route}",status="{status}"}} {count}')
            lines.append("# TYPE steerable_request_seconds histogram")
            for route, buckets in sorted(self._took.items()):
                total = 0
                for edge, count in zip([*map(str, EDGES), "+Inf"], buckets, strict=True):
                    total += count
                    lines.append(f'steerable_request_seconds_bucket{{route="{route}",le="{edge}"}} {total}')
                lines.append(f'steerable_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}')
                lines.append(f'steerable_request_seconds_count{{route="{route}"}} {total}')
        return "\n".join(lines) + "\n"


def memory() -> int:
    """Resident bytes of this process; 0 where the system does not tell."""
    try:
        with open(STATM) as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def _plain(name: str, kind: str, value: float) -> tuple[str, str]:
    return (
        f"# TYPE steerable_{name} {kind}",
        f"steerable_{name} {value:g}" if kind == "counter" else f"steerable_{name} {value}",
    )
