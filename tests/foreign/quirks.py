#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The table of foreign devices' quirks: each is played by a scripted device (v1.py, v2.py) at both
ends of a migration, and what must come of it is written beside it.

    quirks.py write ROOT    writes docs/foreign.md
    quirks.py fresh ROOT    fails when docs/foreign.md is not what `write` would write
"""
import dataclasses
import errno
import pathlib
import sys

from v1 import DRAWN, FAILED, LVU_MOVES, R, S, SR, V1, Z
from v2 import PRE_COPY_P2P, RESUMING, STOP, STOP_COPY, Kernel, Lvu


@dataclasses.dataclass
class Quirk:
    id: str
    source: str               # where it is described
    what: str                 # what the device does
    device: type
    quirks: dict = dataclasses.field(default_factory=dict)
    only: dict = dataclasses.field(default_factory=dict)    # at one side: {"source": {...}}
    host: tuple = ()          # options of host.c
    refused: str = ""         # the sentence; empty: it migrates
    early: bool = False       # ... before the guest is stopped
    quiet: str = "none"       # how quiet N makes it
    survived: str = ""        # how, for the document
    all_dirty: bool = False   # reports fail, so all of memory is sent again
    dead: bool = False        # the source's device does not come back (and is reported)

    @property
    def group(self):
        return self.source.split()[0] + ("-v1" if self.source.endswith(" v1") else "")


LVU = dict(single_recv=True, pad_reads=True, stop_refuses_setup=True, reset_leaves_state=True,
           report_region_start=True, report_empty=True, overlap_einval=True, zero_count_header=True,
           einval_only=True)
MLX5 = dict(window=128 << 10, data_offset=32, pre_copy=False, pending_before=True, pending_short=True,
            keeps_image=True, strict="mlx5", framed=False)
HISI = dict(window=256 << 10, early_match=True, pending_by_reads=True, stop_restarts=True,
            short_failure=True, strict="hisi", framed=False)
LVU_V1 = dict(moves=LVU_MOVES, strict="lvu", sticky_end=True, open_dropped=True, stop_refuses_setup=True,
              reset_from_error_fails=True, report_region_start=True, einval_only=True)

QUIRKS = [
    # --- vfio-user.md 11: libvfio-user ---
    Quirk("U1", "libvfio-user", "reads a request with one recv that does not wait for all of it", Lvu,
          dict(single_recv=True), survived="requests to it carry at most 32 KiB, in one send"),
    Quirk("U2", "libvfio-user", "answers a data read with as many bytes as were asked for, zeroes "
          "behind what there is", Lvu, dict(pad_reads=True), survived="the size field alone counts"),
    Quirk("U3", "libvfio-user", "refuses everything but states and data in STOP, and register "
          "accesses in STOP_COPY", Lvu, dict(stop_refuses_setup=True),
          survived="config space is answered from a copy, interrupts are attached later"),
    Quirk("U3-left", "libvfio-user", "is still in the state where an earlier client left it", Lvu,
          dict(stop_refuses_setup=True), only={"source": dict(left_in=STOP_COPY),
                                               "destination": dict(left_in=STOP)},
          survived="it is set running before it is described"),
    Quirk("U3-reset", "libvfio-user", "keeps its state over a reset", Lvu,
          dict(stop_refuses_setup=True, reset_leaves_state=True),
          only={"destination": dict(left_in=RESUMING)}, survived="RUNNING is asked for after a reset"),
    Quirk("U4", "libvfio-user", "reports dirty pages from the start of a mapping, in its log's own "
          "page size", Lvu, dict(report_region_start=True), survived="one report a mapping"),
    Quirk("U4-large", "libvfio-user", "... of a mapping that is larger than one report can be", Lvu,
          dict(report_region_start=True, max_data=4096), host=("--large",),
          survived="mapped in parts, each for one report"),
    Quirk("U5", "libvfio-user", "answers a report over two mappings with success and no bitmap", Lvu,
          dict(report_region_start=True, report_empty=True), host=("--split-maps",),
          survived="one report a mapping; a short one means that all is dirty"),
    Quirk("U6", "libvfio-user", "EINVAL for a map over another; the same one again is fine", Lvu,
          dict(overlap_einval=True), survived="nothing is mapped twice"),
    Quirk("U7", "libvfio-user", "never answers a change whose quiesce failed", Lvu,
          only={"source": dict(answers_once=True)}, host=("--impatient",), early=True,
          refused="did not answer in time"),
    Quirk("U8", "libvfio-user", "has one thread, which waits for the answers to its DMA messages; "
          "does not log them", Lvu, dict(report_region_start=True), host=("--message",),
          survived="they have a socket of their own; the client marks the pages, and asks for no "
          "report where there is no descriptor"),
    Quirk("U9", "libvfio-user", "answers an access of nothing with a bare header", Lvu,
          dict(zero_count_header=True), survived="there are none"),
    Quirk("U10", "libvfio-user", "every error is EINVAL", Lvu, dict(einval_only=True),
          survived="no decision hangs on the number"),
    Quirk("U11", "libvfio-user", "accepts maps though it does no DMA, and has no log of them", Lvu,
          dict(no_dma=True, report_region_start=True), all_dirty=True,
          survived="a report that fails means that all is dirty"),
    Quirk("U12", "libvfio-user", "loses the stream at a message larger than it agreed to", Lvu,
          dict(max_data=8192), survived="max_data_xfer_size is kept, both ways"),
    Quirk("U-all", "libvfio-user", "all of these at once", Lvu, LVU, host=("--message",),
          survived="as above"),

    # --- vfio-migration.md 2.1: mlx5 ---
    Quirk("M1", "mlx5", "moves only along the arrows of the header: never {} to Z nor Z to {}", V1,
          dict(moves=DRAWN), early=True, refused="cannot be halted once its state is loaded"),
    Quirk("M1-late", "mlx5", "... and is told to migrate all the same", V1, dict(moves=DRAWN),
          host=("--late-load",), survived="R to Z, after a reset if need be; Z stands for {}"),
    Quirk("M2", "mlx5", "window of 128 KiB at offset 32, not mappable", V1,
          dict(window=128 << 10, data_offset=32, size=400_000), survived="portions, by message"),
    Quirk("M3", "mlx5", "no data in pre-copy", V1, dict(pre_copy=False), survived="SR is accepted"),
    Quirk("M4", "mlx5", "pending_bytes is the value before the window moves on: not 0 after the last "
          "portion, which has no bytes then", V1, dict(pending_before=True),
          survived="a portion of no bytes is no error (X6)"),
    Quirk("M5", "mlx5", "pending_bytes without an image is a read of 0 bytes", V1,
          dict(pending_short=True), survived="read in SR and S only"),
    Quirk("M6", "mlx5", "data_size out of turn is an error, and every write of it makes the image "
          "longer", V1, dict(strict="mlx5", framed=False, pre_copy=False), survived="in turn, and once a portion"),
    Quirk("M7", "mlx5", "S for a second time goes on behind the end of the old image: nothing comes",
          V1, dict(keeps_image=True, pre_copy=False), only={"destination": dict(bad_image=1)},
          host=("--twice",), refused="says nothing where it has saved before"),
    Quirk("M8", "mlx5", "is reset in the background: the old state can still be read after it", V1,
          dict(reset_stale=2), survived="read again"),
    Quirk("M9", "mlx5", "EINVAL for bits that it does not know", V1, dict(strict="mlx5", pre_copy=False),
          survived="N only where it is offered"),
    Quirk("M10", "mlx5", "ERROR when it cannot load", V1, only={"destination": dict(bad_image=9)},
          refused="the destination refused: device foreign0"),
    Quirk("M11", "mlx5", "cannot be suspended", V1,
          only={"source": dict(fail={(SR, S): (errno.EIO, 1)})}, refused="Input/output error"),
    Quirk("M11-error", "mlx5", "... nor resumed then, which is an ERROR", V1,
          only={"source": dict(fail={(SR, S): (errno.EIO, 1)}, fail_into_error=True)},
          refused="Input/output error", survived="reset; its configuration is put back"),
    Quirk("M12", "mlx5", "cannot save: says that it is where it was, but is frozen", V1,
          only={"source": dict(save_fails=1)}, refused="Input/output error",
          survived="the way back goes through {}"),
    Quirk("M13", "mlx5", "has no memory for a window in Z", V1,
          only={"destination": dict(fail={(0, Z): (errno.ENOMEM, 1), (R, Z): (errno.ENOMEM, 1)})},
          refused="Cannot allocate memory"),
    Quirk("M14", "mlx5", "resumes at the second try only", V1,
          only={"destination": dict(fail={(0, R): (errno.EIO, 1)})}, survived="asked twice"),
    Quirk("M-all", "mlx5", "all that it is when nothing fails", V1, MLX5, survived="as above"),

    # --- vfio-migration.md 2.2: hisi_acc ---
    Quirk("H1", "hisi_acc", "a block in SR says what it is", V1, dict(early_match=True),
          survived="portions come in order"),
    Quirk("H1-other", "hisi_acc", "... and the other side is something else", V1,
          dict(early_match=True), only={"destination": dict(kind=2)}, refused="the destination refused"),
    Quirk("H2", "hisi_acc", "has no state: the guest never set it up", V1, dict(blank=True),
          survived="an empty stream is one"),
    Quirk("H3", "hisi_acc", "is started again by {} and not by R", V1, dict(stop_restarts=True),
          only={"destination": dict(bad_image=9)}, refused="the destination refused",
          survived="the way back from S goes through {}"),
    Quirk("H3-on", "hisi_acc", "is started again by {} and not by R", V1, dict(stop_restarts=True),
          survived="by {} before it is handed over"),
    Quirk("H4", "hisi_acc", "pending_bytes falls as data is read, and grows in Z", V1,
          dict(pending_by_reads=True), survived="zero or not is all that counts"),
    Quirk("H5", "hisi_acc", "a write of the state that fails takes 0 bytes and is no error", V1,
          only={"source": dict(short_failure=True, fail={(SR, S): (errno.EFAULT, 1)})},
          refused="took 0 of 4 bytes"),
    Quirk("H-all", "hisi_acc", "all that it is when nothing fails", V1, HISI, survived="as above"),

    # --- vfio-migration.md 2.3: accesses ---
    Quirk("A1", "accesses", "any access that mlx5 refuses", V1, dict(strict="mlx5", pre_copy=False),
          survived="each register at its width, in turn"),
    Quirk("A2", "accesses", "any access that hisi_acc refuses", V1, dict(strict="hisi"),
          survived="the same"),
    Quirk("A3", "accesses", "any access that libvfio-user refuses", V1, dict(strict="lvu"),
          survived="the same"),

    # --- vfio-migration.md 2.4: what QEMU's client relied on ---
    Quirk("Q1", "QEMU", "a smaller window at the destination", V1, dict(framed=False),
          only={"destination": dict(window=16 << 10)}, survived="portions are split (X7)"),
    Quirk("Q2", "QEMU", "... of a device that needs its portions whole", V1,
          only={"destination": dict(window=16 << 10)}, refused="the destination refused"),
    Quirk("Q3", "QEMU", "part of the window can be mapped, the rest cannot", V1,
          dict(mapped="part"), survived="each byte the way there is"),
    Quirk("Q4", "QEMU", "all of the window can be mapped", V1, dict(mapped="whole"),
          survived="copied from the mapping"),
    Quirk("Q5", "QEMU", "cuts the mapped file short", V1, dict(mapped="whole"),
          only={"source": dict(truncate=True)}, refused="its window went away"),
    Quirk("Q6", "QEMU", "a portion of 20 MiB", V1, dict(window=24 << 20, size=40 << 20),
          survived="in records of 1 MiB, one portion at the other side"),
    Quirk("Q7", "QEMU", "a portion larger than any limit", V1,
          dict(window=80 << 20, size=140 << 20, pre_copy=False), refused="is too large"),

    # --- vfio-migration.md 2.5: libvfio-user before 2023 ---
    Quirk("L1", "libvfio-user v1", "refuses {} to Z, Z to {} and S to SR", V1, dict(moves=LVU_MOVES),
          early=True, refused="cannot be halted once its state is loaded"),
    Quirk("L1-late", "libvfio-user v1", "... and is told to migrate all the same", V1,
          dict(moves=LVU_MOVES), host=("--late-load",),
          survived="Z stands for {} until the guest is handed over"),
    Quirk("L2", "libvfio-user v1", "0 pending bytes in SR are final", V1, dict(sticky_end=True),
          survived="what comes later comes in S"),
    Quirk("L3", "libvfio-user v1", "a change of the state gives an open portion again", V1,
          dict(open_dropped=True, mapped="whole", sealed=True), host=("--direct",), survived="acknowledged before the state is written"),
    Quirk("L4", "libvfio-user v1", "in S and {} only states, data and the log; not even config space "
          "in S", V1, dict(stop_refuses_setup=True),
          survived="config space is answered from a copy, interrupts are attached later"),
    Quirk("L5", "libvfio-user v1", "cannot be reset out of ERROR", V1,
          dict(reset_from_error_fails=True), only={"destination": dict(bad_image=9)},
          refused="the destination refused"),
    Quirk("L5-source", "libvfio-user v1", "... when it was the source's device that failed", V1,
          dict(reset_from_error_fails=True),
          only={"source": dict(fail={(SR, S): (errno.EIO, 1)}, fail_into_error=True)}, dead=True,
          refused="Input/output error", survived="reported as lost"),
    Quirk("L6", "libvfio-user v1", "a report begins at a mapping and ends in it", V1,
          dict(report_region_start=True), host=("--split-maps",), survived="one report a mapping"),
    Quirk("L-late", "libvfio-user v1", "all of these at once", V1, LVU_V1, host=("--late-load",),
          survived="as above"),

    # --- vfio-migration.md 5: drivers of today, behind a vfio-user server ---
    Quirk("K1", "drivers", "STOP_COPY only", Kernel, dict(flags=1), survived="no pre-copy, no grace"),
    Quirk("K2", "drivers", "P2P, no pre-copy", Kernel, dict(flags=3), quiet="p2p_only",
          survived="RUNNING_P2P is the grace state"),
    Quirk("K3", "drivers", "pre-copy, no P2P: writes memory until STOP_COPY", Kernel, dict(flags=5),
          survived="the last snapshot of the log is taken in S"),
    Quirk("K4", "drivers", "P2P stops nothing but peer to peer DMA: memory is still written", Kernel,
          dict(dma_in_p2p=True), quiet="p2p_only",
          survived="the last snapshot of the log is taken in S"),
    Quirk("K4-flags3", "drivers", "... without pre-copy", Kernel, dict(flags=3, dma_in_p2p=True),
          quiet="p2p_only", survived="the same"),
    Quirk("K5", "drivers", "nothing now, in pre-copy, is ENOMSG", Kernel,
          dict(enomsg=True, pre_copy_data=False),
          quiet="p2p_only", survived="nothing now"),
    Quirk("K6", "drivers", "reads end where its records do", Kernel, dict(read_most=10_000),
          quiet="p2p_only", survived="only a read of nothing is the end"),
    Quirk("K6-one", "drivers", "one byte a read", Kernel, dict(read_most=1, size=100),
          quiet="p2p_only", survived="the same"),
    Quirk("K7", "drivers", "a change stops half way", Kernel,
          only={"source": dict(fail={(PRE_COPY_P2P, STOP_COPY): (errno.EBUSY, 1)})}, quiet="p2p_only",
          refused="Device or resource busy", survived="the state is read"),
    Quirk("K8", "drivers", "refuses what was loaded", Kernel, only={"destination": dict(bad_data=9)},
          quiet="p2p_only", refused="the destination refused"),
    Quirk("K8-error", "drivers", "... and is in ERROR", Kernel,
          only={"destination": dict(bad_data=9, error_on_bad_data=True)}, quiet="p2p_only",
          refused="the destination refused"),
    Quirk("K9", "drivers", "does not say how much data is left", Kernel, dict(flags=5),
          survived="rounds end with the round of memory"),
    Quirk("K10", "drivers", "logs pages of 64 KiB, whatever it is asked for", Kernel,
          dict(other_page=65536), quiet="p2p_only", survived="a bit stands for sixteen pages"),
    Quirk("K10-odd", "drivers", "... of 5000 bytes", Kernel, dict(other_page=5000),
          quiet="p2p_only", early=True, refused="logs pages of 5000 bytes only"),
    Quirk("K11", "drivers", "the state read after a reset is an old one", Kernel,
          dict(reset_stale=2), quiet="p2p_only", survived="read again"),

    Quirk("K12", "drivers", "enters RESUMING only after a reset", Kernel, dict(needs_reset=True),
          quiet="p2p_only", survived="a destination begins with one"),

    # --- NDMA ---
    Quirk("N1", "NDMA", "region capability 6: N stops all DMA", V1, dict(ndma=True), quiet="ndma_all",
          survived="the grace states of the RFC"),
    Quirk("N2", "NDMA", "... and a window that cannot be cut short", V1,
          dict(ndma=True, mapped="whole", sealed=True), quiet="ndma_all",
          survived="data is sent from where it lies"),

    # --- the wire ---
    Quirk("W1", "wire", "replies arrive byte by byte", Kernel, dict(byte_by_byte=True, flags=5),
          survived="messages are put together"),
    Quirk("W2", "wire", "keys in VERSION and capabilities of regions that nobody knows", V1,
          dict(extra_caps=True), survived="passed over"),
    Quirk("W3", "wire", "no second socket for DMA messages is needed and none is made", Kernel,
          dict(twin=False, flags=5), survived="it is an offer"),
    Quirk("W4", "wire", "a report in pages of 64 KiB, which says so, where 4 KiB were asked for", Kernel,
          dict(report_page=65536, flags=5), all_dirty=True,
          survived="a report of something else means that all is dirty"),
    Quirk("W5", "wire", "the same in the region dialect", V1, dict(report_page=65536), all_dirty=True,
          survived="the same"),
]

GROUPS = {
    "libvfio-user": "libvfio-user of today (feature dialect)",
    "mlx5": "mlx5_vfio_pci as it was proposed for v1 in 2021 (region dialect)",
    "hisi_acc": "hisi_acc as it was proposed for v1 in 2021 (region dialect)",
    "accesses": "Register accesses that each of them refuses (region dialect)",
    "QEMU": "What QEMU 5.2 to 7.2 relied upon, or did not notice (region dialect)",
    "libvfio-user-v1": "libvfio-user before 2023 (region dialect)",
    "drivers": "Drivers for v2, behind a vfio-user server (feature dialect)",
    "NDMA": "With the RFC's NDMA (region dialect)",
    "wire": "The wire",
}

INTRO = """# Devices of other makes

A device whose server is not of this project migrates under the engine as well, if it does one of the two dialects of
vfio-user. What such devices are known to do beside the documents is in the tables below. Each row is played by a scripted
device (`tests/foreign`) at both ends of a migration, one quirk at a time; a test compares memory, all of the device's state
and its DMA, which goes on between any two messages, or sees the refusal and that guest and device run on at the source.
Written by `make docs` from `tests/foreign/quirks.py`.

## For operators

- **How quiet a device is** decides what it can be used with. `ndma_all`: N stops all DMA; known of our devices and of those
  with region capability 6. `p2p_only`: the device has the P2P states of v2, which promise no more than that peer to peer DMA
  stops, so it may still write guest memory; it can be with devices that reach each other, not where its DMA may wait
  for the guest to page in. `none`: neither. Pages are not lost with any of them: the last snapshot of the log is taken when
  every device is in S.
- **A device that cannot be halted once its state is loaded** (rows M1, L1) is refused before anything moves: nothing of what was
  loaded would be looked at before the guest is handed over, and a bad state be found out when it is too late to go
  back. `--device vfio-user:PATH,late-load` at the destination takes it all the same.
- **A device that was saved and has no data the second time** (row M7) is refused: it must be reset, which the guest's own
  reset of the device does as well.
- A failure at the source leaves the guest running there. Whether the device does depends on the device: one that is reported as
  lost could not even be reset.
- A report of dirty pages that fails means that all of memory is dirty: the migration is right, and slow.

## For authors of devices and servers

- Read a request to its end; then requests are not limited to 32 KiB. `MIG_DATA_SIZE` (feature 9 over vfio-user), both dialects on
  one device or region capability 6 tell the client that you do.
- Answer a data read completely while there is data. Nothing is the end; a short answer is asked once more.
- Let Z be left for {}: load and validate there, run nothing.
- Seal the file of a data section (`F_SEAL_SHRINK`): then data is sent from where it lies. Otherwise it is copied, with care for
  a file that becomes shorter.
- A portion (region dialect) stays whole up to 64 MiB, if the window at the destination is as large.

## Limits

- A log that insists on pages smaller than 4 KiB, or not of a power of two, is refused (row K10-odd).
- `{}` starts the queues of a hisi_acc device of 2021 again, also at the destination before the guest is handed over. They are
  idle as long as no vCPU runs.
- Without the destination's try (`late-load` and the refusal) an embedder that opens devices without `incoming` sees M1 and L1
  fail when the state was loaded, with the guest stopped for that time.
- Not played, because no client meets it: hisi_acc's `data_offset` can be written and its BAR is half of what it is;
  libvfio-user before 2023 looks states above 7 up in a table.
"""


def document():
    lines = [INTRO]
    for group, title in GROUPS.items():
        lines += [f"## {title}", "", "| row | what the device does | end | how, or the sentence |", "|---|---|---|---|"]
        for row in QUIRKS:
            if row.group == group:
                end = "refused" if row.refused else "taken over" if "--direct" in row.host else "migrates"
                how = f"\"... {row.refused} ...\"" + (f"; {row.survived}" if row.survived else "") \
                    if row.refused else row.survived
                what = row.what[0].upper() + row.what[1:]
                lines.append(f"| {row.id} | {what} | {end} | {how} |")
        lines.append("")
    return "\n".join(lines)


def main(argv):
    if len(argv) != 3 or argv[1] not in ("write", "fresh"):
        sys.exit(__doc__)
    assert {row.group for row in QUIRKS} == set(GROUPS)
    target = pathlib.Path(argv[2]) / "docs" / "foreign.md"
    if argv[1] == "write":
        target.write_text(document())
    elif target.read_text() != document():
        sys.exit("docs/foreign.md is stale: run `make docs`")


if __name__ == "__main__":
    main(sys.argv)
