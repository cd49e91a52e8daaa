"""`kernels`: the request for Triton kernels, its defaults and flags, and the kernels that it selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from twins_trt.errors import UsageError
from twins_trt.spelling import spelled
from twins_trt.verbs.flags import Flag, FlagTable, settle
from twins_trt.verbs.kinds import NAMES, SWITCH, WHOLE

if TYPE_CHECKING:
    from twins_trt.kernels.case import Case


@dataclass(frozen=True)
class KernelsRequest:
    """Which kernels, and what to do with them. By default they are listed as recorded.

    targets, kernels, dtypes, head_dims: which kernels; empty for all. check: compile them again, in `workers`
    processes, and compare them with the record. out: compile them and write them there as cubins and PTX, of the ISA
    version `ptx_version`. Raises `UsageError` for fields that exclude each other.
    """

    targets: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    head_dims: tuple[str, ...] = ()
    check: bool = False
    out: str | None = None
    ptx_version: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        settle(self, TABLE)
        if self.check and self.out is not None:
            raise UsageError(
                f"{spelled('out', 'DIR')} is not allowed with {spelled('check', True)}", "leave one of them out"
            )
        if self.ptx_version is not None and self.out is None:
            raise UsageError(f"{spelled('ptx_version')} says how PTX is written", f"give {spelled('out', 'DIR')} too")
        if self.workers is not None and (self.workers < 1 or not self.check):
            raise UsageError(
                f"{spelled('workers')} is the number of processes that {spelled('check', True)} compiles on",
                f"give {spelled('check', True)} {spelled('workers', 2)}",
            )

    def select(self) -> list[tuple[Case, str]]:
        """(case, target) of every kernel that the request selects. Raises `UsageError` for an unknown name."""
        from twins_trt.kernels.case import DTYPES
        from twins_trt.kernels.crosscompile import TARGETS, all_cases, select

        known = {
            "kernels": {case.name.split()[0] for target in TARGETS for case in all_cases(target)},
            "dtypes": set(DTYPES),
            "head_dims": {str(case.head_dim) for case in all_cases(TARGETS[0])} - {"0"},
        }
        for name, words in known.items():
            if unknown := [word for word in getattr(self, name) if word not in words]:
                raise UsageError(f"{spelled(name)} has no {unknown[0]!r}", f"choose from {', '.join(sorted(words))}")
        return select(
            self.targets or TARGETS,
            kernels=self.kernels,
            dtypes=self.dtypes,
            head_dims=[int(dim) for dim in self.head_dims],
        )


WHICH = "which"

TABLE: tuple[Flag, ...] = (
    Flag("--target", "targets", "GPUs, such as sm_87,sm_90", NAMES, "SM,...", group=WHICH),
    Flag("--kernels", "kernels", "such as lsa_forward,resize_argmax", NAMES, "NAME,NAME", group=WHICH),
    Flag("--dtypes", "dtypes", "one or several, with commas", NAMES, "{fp32,fp16,bf16}", group=WHICH),
    Flag("--head-dims", "head_dims", "such as 32; kernels without one are always in", NAMES, "N,N", group=WHICH),
    Flag("--check", "check", "compile them and compare with what is recorded; not with --out", SWITCH, sets=True),
    Flag("--out", "out", "compile them and write cubins, PTX and kernels.json there", metavar="DIR"),
    Flag("--ptx-version", "ptx_version", "with --out: 85 for JetPack 6, 90 for JetPack 7.0", WHOLE, "N"),
    Flag("--workers", "workers", "with --check: processes; default: one a core", WHOLE, "N"),
)

FLAGS = FlagTable(KernelsRequest, TABLE, groups={WHICH: "by default all of them, for all targets"})
