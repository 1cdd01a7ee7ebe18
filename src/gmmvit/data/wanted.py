"""What the caller wants images to become, completed from the data set's own files."""

from __future__ import annotations

from dataclasses import dataclass

from gmmvit.data.headers import own_pixels
from gmmvit.data.image import quiet_pillow
from gmmvit.data.records import DataError, Source, relative
from gmmvit.data.target import Target


@dataclass(frozen=True)
class Wanted:
    """A `Target` as the caller asks for it; None leaves a field to the data set. Raises ValueError as `Target`."""

    size: tuple[int, int] | None
    channels: int | None
    bits: int | None
    fit: str
    axes: str | None

    def __post_init__(self) -> None:
        Target(
            self.size or (1, 1),
            3 if self.channels is None else self.channels,
            8 if self.bits is None else self.bits,
            self.fit,
            self.axes,
        )

    def of(self, source: Source) -> Target:
        """What the images of `source` become.

        Raises:
            DataError: its first images do not clearly show their channels.
        """
        own = self._own(source) if self.channels is None or self.bits is None else None
        channels, bits = own or (source.channels, 8)
        return Target(
            self.size or source.image_size,
            channels if self.channels is None else self.channels,
            bits if self.bits is None else self.bits,
            self.fit,
            self.axes,
        )

    @quiet_pillow()
    def _own(self, source: Source) -> tuple[int, int] | None:
        """Channels and bits of the first readable image; None if that is a usual one, or if none is known."""
        wrong = None
        for sample in source.samples:
            try:
                return own_pixels(sample, self.channels, self.axes)
            except OSError:  # a dead link; reported as a broken image
                continue
            except DataError as error:
                wrong = wrong or DataError(f"{relative(sample, source.location)} of {source.location}: {error}")
        if wrong is not None:
            raise wrong
        return None
