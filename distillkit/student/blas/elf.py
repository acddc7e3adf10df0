"""ELF shared libraries: read the symbols that a library needs, and build one that defines aliases of functions.

OpenBLAS of the wheel `scipy-openblas32` exports `scipy_cblas_sgemm` where MLX looks for `cblas_sgemm`.
`build_alias_library` builds a library in memory whose dynamic symbols are the absolute addresses of functions that are
already loaded: the dynamic linker then finds them under the new names. It contains no code, is never written to disk,
and takes under a millisecond. glibc does not relocate absolute symbols (SHN_ABS) since 2.28; MLX needs a newer one.

Knows nothing of BLAS. Standard library only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

EM = {"x86_64": 62, "aarch64": 183}  # e_machine
ET_DYN, SHT_DYNSYM = 3, 11
PT_LOAD, PT_DYNAMIC, PT_GNU_STACK = 1, 2, 0x6474E551
PF_R, PF_W = 4, 2
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
GLOBAL_FUNCTION = 1 << 4 | 2  # st_info: STB_GLOBAL, STT_FUNC
DT_NULL, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_SONAME = 0, 4, 5, 6, 10, 11, 14
EHDR, PHDR, SHDR, SYM, DYN = (struct.Struct(f"<{fields}") for fields in (
    "16s2HI3QI6H", "2I6Q", "2I4Q2I2Q", "I2BH2Q", "2Q",
))  # fmt: skip
PAGE = 0x10000  # the largest page size of either architecture


def undefined_symbols(library: Path) -> list[str]:
    """The names of the symbols that a 64-bit little-endian library imports from others."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as image:
        return [name for name, _, _ in symbols(image, only_undefined=True) if name]


def symbols(image: bytes | mmap.mmap, *, only_undefined: bool = False) -> Iterator[tuple[str, int, int]]:
    """The dynamic symbols of a library as (name, section index, value)."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    header = EHDR.unpack_from(image)
    sections = [SHDR.unpack_from(image, header[6] + i * SHDR.size) for i in range(header[12])]
    for table in (section for section in sections if section[1] == SHT_DYNSYM):
        strings = sections[table[6]]
        names = image[strings[4] : strings[4] + strings[5]]
        for name, _, _, section, value, _ in SYM.iter_unpack(image[table[4] : table[4] + table[5]]):
            if section == SHN_UNDEF or not only_undefined:
                yield names[name : names.index(b"\0", name)].decode("utf-8", "replace"), section, value


def build_alias_library(addresses: Mapping[str, int], machine: str = "") -> bytes:
    """The bytes of a shared library that defines each name as an absolute address. Raises OSError on other machines."""
    machine = machine or platform.machine()
    if machine not in EM:
        raise OSError(f"alias libraries are not supported on {machine}")
    names = ["", *addresses, "distillkit-aliases.so"]
    strings = b"".join(name.encode() + b"\0" for name in names)
    offsets = [0]
    for name in names:
        offsets.append(offsets[-1] + len(name.encode()) + 1)
    table = SYM.pack(0, 0, 0, SHN_UNDEF, 0, 0)
    for offset, address in zip(offsets[1:], addresses.values(), strict=False):
        table += SYM.pack(offset, GLOBAL_FUNCTION, 0, SHN_ABS, address, 0)
    hashes = _hash_table(list(addresses))

    start = EHDR.size + 3 * PHDR.size
    places = {DT_SYMTAB: start}
    places[DT_HASH] = places[DT_SYMTAB] + len(table)
    places[DT_STRTAB] = places[DT_HASH] + len(hashes)
    dynamic = -(-(places[DT_STRTAB] + len(strings)) // 8) * 8
    entries = [*places.items(), (DT_STRSZ, len(strings)), (DT_SYMENT, SYM.size), (DT_SONAME, offsets[-2]), (DT_NULL, 0)]
    size = dynamic + len(entries) * DYN.size

    image = EHDR.pack(
        b"\x7fELF\x02\x01\x01", ET_DYN, EM[machine], 1, 0, EHDR.size, 0, 0,
        EHDR.size, PHDR.size, 3, 0, 0, 0,
    )  # fmt: skip
    image += PHDR.pack(PT_LOAD, PF_R | PF_W, 0, 0, 0, size, size, PAGE)
    image += PHDR.pack(PT_DYNAMIC, PF_R | PF_W, *[dynamic] * 3, *[size - dynamic] * 2, 8)
    image += PHDR.pack(PT_GNU_STACK, PF_R | PF_W, 0, 0, 0, 0, 0, 16)  # without it the stack would be executable
    image = (image + table + hashes + strings).ljust(dynamic, b"\0")
    return image + b"".join(DYN.pack(*entry) for entry in entries)


def load_aliases(addresses: Mapping[str, int]) -> ctypes.CDLL:
    """Put the names into the global symbol table of this process. Raises OSError if that fails."""
    handle = os.memfd_create("distillkit-aliases")
    try:
        with os.fdopen(os.dup(handle), "wb") as stream:
            stream.write(build_alias_library(addresses))
        return ctypes.CDLL(f"/proc/self/fd/{handle}", mode=ctypes.RTLD_GLOBAL)
    finally:
        os.close(handle)


def _hash_table(names: list[str]) -> bytes:
    """A DT_HASH table with one bucket per symbol; symbol 0 is the undefined one."""
    buckets, chains = [0] * max(1, len(names)), [0] * (len(names) + 1)
    for symbol, name in enumerate(names, 1):
        bucket = _hash(name) % len(buckets)
        chains[symbol], buckets[bucket] = buckets[bucket], symbol
    words = [len(buckets), len(chains), *buckets, *chains]
    return struct.pack(f"<{len(words)}I", *words).ljust(-(-4 * len(words) // 8) * 8, b"\0")


def _hash(name: str) -> int:
    """The hash function of the System V ABI."""
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high
    return value
