"""Build the native kernels under sanitizers and run what tests them; exits non-zero on a finding.

    python tools/check_native.py              # AddressSanitizer + UBSan, then ThreadSanitizer
    python tools/check_native.py neon         # compile every source for aarch64
    python tools/check_native.py older        # dispatch on processors without AVX-512, without AVX
    python tools/check_native.py avx512       # what AVX-512 computes, on a processor with AVX2

The address run is the kernel tests in Python with the sanitizer's runtime loaded first. Python
and torch are not instrumented, so threads are checked without them: ``pool_stress.cpp`` drives
the thread pool alone. Leaks are not looked for: the interpreter's own would drown ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "src/headrace/kernels/native"
BUILD = ROOT / "build/sanitize"
TESTS = ("tests/kernels",)
CROSS = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64-static"
EMULATION = ROOT / "tests/kernels/native/emulated/compile.py"
OLDER, PROCESSORS = "qemu-x86_64-static", ("Nehalem", "Haswell-noTSX", "max")


def main(arguments: list[str]) -> int:
    """Run the checks named (address, thread, neon, older, avx512); the first two when none is."""
    checks = {
        "address": address, "thread": thread, "neon": neon, "older": older, "avx512": avx512,
    }  # fmt: skip
    unknown = set(arguments) - set(checks)
    if unknown:
        print(f"unknown check: {', '.join(sorted(unknown))}; known: {', '.join(checks)}")
        return 2
    for name in arguments or ["address", "thread"]:
        print(f"-- {name}", flush=True)
        code = checks[name]()
        if code:
            return code
    return 0


def address() -> int:
    """The kernel tests on a module built with AddressSanitizer and UBSan."""
    site = BUILD / "address"
    _build(
        site / "cmake",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined "
        "-fno-sanitize-recover=undefined",
    )
    environment = {
        # Exceptions thrown by the module need the C++ runtime beside the sanitizer's.
        "LD_PRELOAD": " ".join(_runtime(name) for name in ("libasan.so", "libstdc++.so")),
        # From GCC 13 on, frames that are looked for after their return lie on a stack of the
        # sanitizer's own, where a spilled vector of 64 bytes may be misaligned, and faults.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return _kernel_tests(site, environment)


def avx512() -> int:
    """The kernel tests on a module whose AVX-512 (F, BW, DQ, VL, BF16; neither VNNI nor AMX) is
    emulated: bits and tolerances hold or do not whatever executes them. Needs SIMDe."""
    if not Path("/usr/include/simde").is_dir():
        print("SIMDe is missing (Debian: apt install libsimde-dev); nothing checked")
        return 1
    site = BUILD / "avx512"
    _build(
        site / "cmake",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        f"-DCMAKE_CXX_COMPILER_LAUNCHER={sys.executable};{EMULATION}",
    )
    # What measures roofs runs the processor's own instructions.
    return _kernel_tests(site, {}, "--ignore", "tests/kernels/native/test_roofs.py")


def thread() -> int:
    """The thread pool under ThreadSanitizer, driven by a program of its own."""
    program = BUILD / "pool_stress"
    BUILD.mkdir(parents=True, exist_ok=True)
    # -Wno-tsan: the sanitizer does not model fences; every flag it reads has an order of its own.
    _run(
        os.environ.get("CXX", "g++"), "-std=c++17", "-O1", "-g", "-fsanitize=thread", "-Wno-tsan",
        "-iquote", str(NATIVE), ROOT / "tests/kernels/native/pool_stress.cpp", NATIVE / "pool.cpp",
        "-pthread", "-o", program,
    )  # fmt: skip
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}
    return subprocess.run([program], env=environment, check=False).returncode


def neon() -> int:
    """Every source but the Python bindings compiled for aarch64; the pool run under an emulator
    where there is one."""
    if shutil.which(CROSS) is None:
        print(f"{CROSS} is missing (Debian: apt install g++-aarch64-linux-gnu); nothing checked")
        return 1
    flags = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-ffp-contract=off", "-iquote", str(NATIVE))
    sources = [s for s in sorted(NATIVE.glob("*.cpp")) if "nanobind" not in s.read_text()]
    for source in sources:
        _run(CROSS, *flags, "-fsyntax-only", source)
    print(f"{len(sources)} sources compile for aarch64")
    if shutil.which(EMULATOR) is None:
        print(f"{EMULATOR} is missing (Debian: apt install qemu-user-static); nothing was run")
        return 0
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / "neon_check"
    checks = ("neon_check.cpp", "pool_stress.cpp")
    for check in checks:
        main_file = ROOT / "tests/kernels/native" / check
        _run(CROSS, *flags, "-static", main_file, *sources, "-pthread", "-o", program)
        code = subprocess.run([EMULATOR, program], check=False).returncode
        print(f"{check}: {'passes' if code == 0 else 'fails'} on emulated aarch64")
        if code:
            return code
    return 0


def older() -> int:
    """The module's own objects, linked into a program that chooses as the package does, on
    emulated processors: an instruction that one lacks ends it there and nowhere else."""
    if shutil.which(OLDER) is None:
        print(f"{OLDER} is missing (Debian: apt install qemu-user-static); nothing checked")
        return 1
    site, program = BUILD / "older", BUILD / "dispatch_check"
    _build(site, "-DCMAKE_BUILD_TYPE=Release")
    objects = [
        built
        for built in sorted(site.glob("CMakeFiles/_native.dir/**/*.cpp.o"))
        if "nanobind" not in (NATIVE / built.name[: -len(".o")]).read_text()
    ]
    main_file = ROOT / "tests/kernels/native/dispatch_check.cpp"
    _run(
        os.environ.get("CXX", "g++"), "-std=c++17", "-O2", "-Wall", "-Wextra",
        "-iquote", NATIVE, main_file, *objects, "-static", "-pthread", "-o", program,
    )  # fmt: skip
    for processor in PROCESSORS:
        done = subprocess.run([OLDER, "-cpu", processor, program], check=False)
        print(f"{'passes' if done.returncode == 0 else 'fails'} on an emulated {processor}")
        if done.returncode:
            return 1
    return 0


def _kernel_tests(site: Path, environment: dict[str, str], *options: str) -> int:
    """``tests/kernels`` on the module built in ``site/cmake``; 0 if they pass."""
    package = site / "headrace"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "src/headrace", package)
    for module in (site / "cmake").glob("_native*.so"):
        shutil.copy(module, package / "kernels/native")
    environment = {
        **os.environ,
        **environment,
        "PYTHONPATH": os.pathsep.join((str(site), sysconfig.get_paths()["purelib"])),
    }
    # -S: the editable install would put the ordinary module in place of this one.
    probe = "from headrace.kernels.native import native_module as n; print(n().__file__)"
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", probe],
        env=environment, cwd=site, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    if Path(loaded).parent != package / "kernels/native":
        print(f"the module under test is not the one built for it: {loaded}")
        return 1
    pytest = (
        sys.executable, "-S", "-m", "pytest", "-q", "-x", "--timeout", "600",
        "-p", "no:cacheprovider", "-o", f"pythonpath={site} . tests", *options, *TESTS,
    )  # fmt: skip
    return subprocess.run(pytest, env=environment, cwd=ROOT, check=False).returncode


def _build(site: Path, *options: str) -> None:
    """The module, with CMake."""
    import nanobind

    _run(
        "cmake", "-S", ROOT, "-B", site, *options,
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dnanobind_DIR={nanobind.cmake_dir()}",
    )  # fmt: skip
    _run("cmake", "--build", site, "--parallel", str(os.cpu_count() or 1))


def _runtime(library: str) -> str:
    """Where the compiler keeps a runtime library."""
    compiler = os.environ.get("CXX", "g++")
    found = subprocess.run(
        [compiler, f"-print-file-name={library}"], check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
