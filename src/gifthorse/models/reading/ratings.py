"""What a name means that a pickle asks for: a part of weights, a plain object, code, a danger."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from typing import Literal, TypeAlias

from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from gifthorse.core.errors import UnsafeModel
from gifthorse.models.reading.entries import shown
from gifthorse.models.reading.lookups import LOOKUP, looked_up
from gifthorse.models.reading.opcodes import EXTENSION, NAMELESS, Trace

Safety: TypeAlias = Literal["harmless", "object", "class", "unknown", "dangerous"]

BROKEN = 1 << 20  # bytes of a broken pickle that picklescan is shown
WRITTEN = 10_000  # names that are looked for in one
_WRITTEN = re.compile(rb"[ci]([A-Za-z_][\w.]{0,99})\n([A-Za-z_][\w.]{0,99})\n")

# 1. What weights are made of ------------------------------------------------------------------

STORAGES = {
    "torch.DoubleStorage": ("float64", 8),
    "torch.FloatStorage": ("float32", 4),
    "torch.HalfStorage": ("float16", 2),
    "torch.BFloat16Storage": ("bfloat16", 2),
    "torch.LongStorage": ("int64", 8),
    "torch.IntStorage": ("int32", 4),
    "torch.ShortStorage": ("int16", 2),
    "torch.CharStorage": ("int8", 1),
    "torch.ByteStorage": ("uint8", 1),
    "torch.BoolStorage": ("bool", 1),
    "torch.ComplexFloatStorage": ("complex64", 8),
    "torch.ComplexDoubleStorage": ("complex128", 16),
    "torch.QInt8Storage": ("qint8", 1),
    "torch.QUInt8Storage": ("quint8", 1),
    "torch.QInt32Storage": ("qint32", 4),
    "torch.storage.UntypedStorage": ("untyped", 1),
}
# Rebuilding functions, with the most arguments they get: more would be metadata of other devices.
STRIDED = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
    "torch._utils._rebuild_qtensor": 7,
}
PARAMETER = "torch._utils._rebuild_parameter"
SPARSE = "torch._utils._rebuild_sparse_tensor"
META = "torch._utils._rebuild_meta_tensor_no_storage"
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
ORDERED = "collections.OrderedDict"
DICTS = (ORDERED, "collections.Counter")
CALLS = frozenset(
    (
        *(*STRIDED, PARAMETER, SPARSE, META, *SCALARS, *ARRAYS, *DICTS, "numpy.dtype"),
        *("torch.Size", "torch.device", "torch.serialization._get_layout", "_codecs.encode"),
        *("builtins.set", "builtins.complex"),
    )
)
DTYPES = (
    "float64 float32 float16 bfloat16 complex64 complex128 int64 int32 int16 int8 uint8 bool "
    "uint16 uint32 uint64 qint8 quint8 qint32 float8_e4m3fn float8_e5m2 per_tensor_affine "
    "per_channel_affine"
)
HARMLESS = CALLS | STORAGES.keys() | {"numpy.ndarray"} | {f"torch.{n}" for n in DTYPES.split()}

# 2. What else there is ------------------------------------------------------------------------

# Values of the standard library and of NumPy: to make one of them does nothing else.
_OBJECTS = {
    "array": "array _array_reconstructor",
    "argparse": "Namespace",
    "builtins": "bool bytearray bytes complex dict enumerate float frozenset int list object range "
    "reversed set slice str tuple zip Ellipsis NotImplemented",
    "collections": "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque",
    "contextlib": "nullcontext",
    "copyreg": "_reconstructor __newobj__ __newobj_ex__",
    "datetime": "date datetime time timedelta timezone tzinfo",
    "decimal": "Context Decimal",
    "enum": "Enum EnumMeta EnumType Flag IntEnum IntFlag StrEnum auto",
    "fractions": "Fraction",
    "functools": "partial",
    "ipaddress": "IPv4Address IPv4Network IPv6Address IPv6Network",
    "itertools": "chain count cycle repeat",
    "operator": "add and_ eq floordiv ge gt itemgetter le lt mul ne neg not_ or_ sub truediv",
    "logging": "Logger getLogger",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "random": "Random",
    "re": "RegexFlag _compile compile",
    "string": "Template",
    "time": "struct_time",
    "types": "MappingProxyType SimpleNamespace",
    "typing": "Any Dict List Optional Sequence Set Tuple Union",
    "uuid": "SafeUUID UUID",
    "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
    "numpy": "bool bool_ complex128 complex64 float16 float32 float64 int16 int32 int64 int8 intp "
    "longlong matrix recarray record str_ bytes_ uint16 uint32 uint64 uint8 ulonglong void "
    "datetime64 timedelta64",
    "numpy.core.numeric": "_frombuffer",
    "numpy.ma.core": "MaskedArray _mareconstruct",
    "numpy.random": "Generator RandomState SeedSequence",
    "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._sfc64": "SFC64",
    "numpy.random.mtrand": "RandomState _rand",
    # What TorchScript writes around lists: it returns them as they are.
    "torch.jit._pickle": "build_boollist build_doublelist build_intlist build_tensorlist "
    "restore_type_tag",
}
OBJECTS = frozenset(f"{module}.{n}" for module, names in _OBJECTS.items() for n in names.split())
# Where modules were called otherwise in other versions of Python and NumPy.
_ALIASES = {
    "_operator": "operator",
    "_datetime": "datetime",
    "_collections": "collections",
    "_decimal": "decimal",
    "_functools": "functools",
    "_random": "random",
    "pathlib._local": "pathlib",
    "numpy._core.numeric": "numpy.core.numeric",
}
_EXCEPTION = re.compile(r"builtins\.[A-Z]\w*(Error|Exception|Warning|Interrupt|Exit|Iteration)")

# Libraries that start programs, load or fetch things; their classes and functions alike.
_DANGEROUS = (
    "IPython aiohttp asynchat asyncore cgitb cloudpickle commands dill distutils fabric httplib "
    "httpx imp invoke joblib jsonpickle lib2to3 paramiko pexpect pip pipes pkg_resources plumbum "
    "popen2 psutil requests setuptools smtpd telnetlib urllib urllib2 urllib3 win32api wheel"
)
DANGEROUS = frozenset((*_DANGEROUS.split(), EXTENSION, NAMELESS))
# Parts of such libraries as are about numbers elsewhere.
_PARTS = (
    "numpy.ctypeslib numpy.distutils numpy.f2py numpy.lib numpy.testing torch._dynamo "
    "torch._export torch._functorch torch._inductor torch._library torch._ops torch.classes "
    "torch.compiler torch.distributed torch.export torch.fx torch.hub torch.jit torch.library "
    "torch.multiprocessing torch.onnx torch.ops torch.package torch.profiler torch.serialization "
    "torch.testing torch.utils torchvision.datasets.utils"
)
PARTS = tuple(f"{part}." for part in _PARTS.split())
# Functions that load, run or look up, wherever they are met; also under the names of others.
_FUNCTIONS = (
    "__builtins__ __class__ __code__ __dict__ __getattribute__ __globals__ __import__ "
    "__reduce__ __reduce_ex__ __setattr__ __subclasses__ _load_from_bytes attrgetter "
    "check_call check_output compile eval exec execfile fork fromfile genfromtxt getattr getoutput "
    "import_module load load_library load_model load_module load_state_dict_from_url load_url "
    "loads loadtxt memmap methodcaller open popen Popen read_pickle run runcode runctx runsource "
    "savetxt setattr spawn system unsafe_load urlopen urlretrieve"
)
FUNCTIONS = frozenset(_FUNCTIONS.split())
# What torch.compile puts around a net: classes that keep what they are given.
_COMPILED = {
    "torch._dynamo.eval_frame": "OptimizedModule OptimizeContext",
    "torch._dynamo.convert_frame": "CatchErrorsWrapper ConvertFrame ConvertFrameAssert "
    "ConvertFrameBox",
    "torch._dynamo.hooks": "Hooks",
    "torch._dynamo.repro.after_dynamo": "WrapBackendDebug",
}
COMPILED = frozenset(f"{module}.{n}" for module, names in _COMPILED.items() for n in names.split())
# Whose classes are parts of models and of their training.
CODE = ("torch.nn.", "torch.optim.", "torch.utils.data.", "torchvision.", "timm.")

WHAT_TO_DO = (
    "Where the file is trusted, open it as its author does and keep the weights alone: "
    'from safetensors.torch import save_file; save_file(model.state_dict(), "weights.safetensors") '
    "- or, if weights are shared, "
    'torch.save(model.state_dict(), "weights.pt")'
)


@dataclass(frozen=True)
class Import:
    """A name that a pickle asks for.

    Attributes:
        module: As written, after Python 2 names were translated.
        name: Of a function or class of that module.
        safety: `harmless` for the parts of a state dict, `object` for plain values of Python and
            NumPy, `class` for library modules, `dangerous` for known ways to run code, else
            `unknown`.
        record: Part of the file in which it stands.
    """

    module: str
    name: str
    safety: Safety
    record: str = ""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def rate(module: str, name: str) -> Safety:
    """Say how dangerous it is to import and call a name.

    Of the standard library, all that is not known to be a plain value can be made to run
    something; elsewhere, a class that nobody knows is a class.

    Example:
        >>> rate("collections", "OrderedDict"), rate("os", "system"), rate("my_nets", "Net")
        ('harmless', 'dangerous', 'unknown')
        >>> rate("pathlib", "PosixPath"), rate("pathlib", "os.system")
        ('object', 'dangerous')
    """
    full = f"{module}.{name}"
    if full in HARMLESS:
        return "harmless"
    if f"{_ALIASES.get(module, module)}.{name}" in OBJECTS or _EXCEPTION.fullmatch(full):
        return "object"
    top, parts = module.split(".")[0], name.split(".")
    if top in DANGEROUS or top in sys.stdlib_module_names or _reaches(parts):
        return "dangerous"
    known = full.startswith(CODE) and "datapipes" not in module
    if full in COMPILED:
        return "class"
    if known and parts[-1].lstrip("_")[:1].isupper():
        return "class"
    return "dangerous" if full.startswith(PARTS) else "unknown"


def _reaches(parts: list[str]) -> bool:
    """Whether attributes lead to a function that runs things, or through a module: `_os.kill`."""
    modules = (p for part in parts[:-1] for p in (part, part.lstrip("_")))
    return any(p in FUNCTIONS for p in parts) or any(p in sys.stdlib_module_names for p in modules)


def imports(trace: Trace, record: str = "", data: bytes = b"") -> tuple[Import, ...]:
    """Return what a traced pickle imports, each name rated.

    Args:
        trace: The pickle.
        record: Name of the part of the file it stands in.
        data: Its bytes: where the trace broke off, they are searched for names, and picklescan is
            asked what it sees in them.
    """
    names = dict.fromkeys(trace.names)
    methods = looked_up(trace) if LOOKUP in names and trace.fault is None else None
    if methods is not None:
        del names[LOOKUP]
        names |= dict.fromkeys(methods)
    if trace.fault is not None:  # other readers may know how to go on
        written = ((m[1].decode(), m[2].decode()) for m in _WRITTEN.finditer(data))
        further = {pair for pair in islice(written, WRITTEN) if rate(*pair) == "dangerous"}
        if len(data) <= BROKEN:
            further |= _dangerous(data)
        names |= dict.fromkeys(sorted(further))
    return tuple(Import(module, name, _rating(module, name), record) for module, name in names)


@cache
def _rating(module: str, name: str) -> Safety:
    """Rate a name; of what is neither harmless nor a plain object, picklescan may think worse."""
    ours = rate(module, name)
    plain = not re.search(r"\s", module + name)
    if ours in ("class", "unknown") and plain and _dangerous(f"c{module}\n{name}\n.".encode()):
        return "dangerous"
    return ours


def _dangerous(data: bytes) -> set[tuple[str, str]]:
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # we report, it need not
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes in names
            result = scan_pickle_bytes(BytesIO(data), "pickle")
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OSError):
        return set()  # a parser's failure is no rating; ours refuses what it cannot follow
    found = {(g.module, g.name) for g in result.globals if g.safety is SafetyLevel.Dangerous}
    return {pair for pair in found if rate(*pair) not in ("harmless", "object")}


def refuse_danger(found: tuple[Import, ...]) -> None:
    """Raise if any name is known to run commands.

    Raises:
        UnsafeModel: `FS001`.
    """
    if any(i.safety == "dangerous" for i in found):
        raise UnsafeModel(
            f"the file would run code when opened: it asks for {_asked(found, 'dangerous')}; "
            "nothing was run. Do not open it with anything else; get the weights from a source "
            "you trust, best as safetensors",
            rule="FS001",
        )


def refuse_code(found: tuple[Import, ...]) -> None:
    """Raise if any name needs more than what a state dict is made of.

    Raises:
        UnsafeModel: `FS001` for names that are known to run commands, `FS002` for classes and
            for objects.
    """
    refuse_danger(found)
    words = brought(found)
    if words:
        raise UnsafeModel(f"the file {words}. {WHAT_TO_DO}", rule="FS002")


def brought(found: tuple[Import, ...]) -> str:
    """Say what a file holds beside weights, by the gravest of its names; empty if nothing."""
    for safety in ("class", "unknown", "object"):
        if any(i.safety == safety for i in found):
            return _brings(found, safety, _asked(found, safety))
    return ""


def _asked(found: tuple[Import, ...], safety: str) -> str:
    bad = [i for i in found if i.safety == safety]
    names = ", ".join(dict.fromkeys(shown(str(i)) for i in bad[:5]))
    return f"{names} (in {shown(bad[0].record)})"


def _brings(found: tuple[Import, ...], safety: Safety | str, asked: str) -> str:
    if safety == "object":
        return (
            f"brings Python objects beside its weights: {asked}. They are plain values and run "
            "nothing, but no object is made here of what a file asks for, only tensors, arrays, "
            "numbers and texts"
        )
    return (
        f"holds {what_code(found)}, not weights alone: it asks for {asked}, and opening it would "
        "run the code of these classes"
    )


def what_code(found: tuple[Import, ...]) -> str:
    """Say what kind of thing brings the code that these names are of."""
    modules = any(i.module.startswith("torch.nn.modules.") for i in found)
    return "a whole pickled model" if modules else "Python objects"


def objects_alone(found: tuple[Import, ...]) -> bool:
    """Whether a file asks for plain objects, and for nothing that is worse."""
    ratings = {i.safety for i in found}
    return "object" in ratings and not ratings & {"class", "unknown", "dangerous"}
