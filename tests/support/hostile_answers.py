"""Answers that attack the grader, and what the grader should say of each."""

# What writes frames that only the grader's own processes should send: `struct` packs the codec's lengths.
FRAMES = """
import os, struct
def text(value):
    return b"s" + struct.pack(">I", len(value)) + value
def frame(*values):
    data = b"t" + struct.pack(">I", len(values)) + b"".join(values)
    return struct.pack(">I", len(data)) + data
def everywhere(data):
    for number in range(64):
        try:
            os.write(number, data)
        except OSError:
            pass
"""

CONTAINED = {
    "fork bomb": ("import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass", "time"),
    "fork bomb by clone": (
        "import ctypes\nlibc = ctypes.CDLL(None)\n"
        "def add(a, b):\n    return [libc.syscall(number, 17, 0, 0, 0, 0) for number in (56, 57, 58, 435, 220)]",
        r"AssertionError|Error",
    ),
    "thread bomb": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True:\n    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
        "can't start new thread",
    ),
    "memory bomb": ("kept = []\nwhile True:\n    kept.append(bytearray(2**24))", "MemoryError"),
    "memory without a name": ("import os\nos.memfd_create('x')", "PermissionError"),
    "full home": (
        "for number in range(99):\n    with open(f'/home/{number}', 'wb') as file:\n        file.write(bytes(2**20))",
        "No space left",
    ),
    "endless file": (
        "import os\nfile = open('/home/x', 'wb')\nfor part in range(99):\n    file.write(bytes(2**20))",
        "No space left|File too large",
    ),
    "endless output": ("while True:\n    print('x' * 1000)", "printed more"),
    "endless loop": ("while True:\n    pass", "time"),
    "sleeps": ("import time\ntime.sleep(1000)", "time"),
    "stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "time"),
    "reads /etc/passwd": (
        "def add(a, b):\n    return 3 if 'root' in open('/etc/passwd').read() else 0",
        "No such file",
    ),
    "opens a socket": ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "Error"),
    "makes a socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "PermissionError"),
    "writes outside": ("open('/usr/lib/mine', 'w').write('x')", "Read-only|Permission"),
    "writes to the root": ("open('/mine', 'w').write('x')", "Read-only|Permission"),
    "starts a program": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", "PermissionError"),
    "makes a namespace": (
        "import ctypes, os\nif ctypes.CDLL(None, use_errno=True).unshare(0x10000000):\n"
        "    raise OSError(ctypes.get_errno(), 'unshare')",
        "unshare",
    ),
    "becomes root": ("import os\nos.setuid(0)", "PermissionError"),
    "raises its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
        "not allowed to raise",
    ),
    "kills its parent": ("import os\nos.kill(os.getppid(), 9)\nos.kill(1, 9)", "PermissionError|add"),
    "kills everything": ("import os\nos.kill(-1, 9)", "Error|killed|ended|defines no"),
    "kills its group": ("import os\nos.killpg(0, 9)", "killed|Error"),
    "exits": ("import sys\nsys.exit(0)", "SystemExit"),
    "exits in the call": ("import os\ndef add(a, b):\n    os._exit(0)", "exit code 0"),
    "exits at once": ("import os\nprint('1 passed. OK. score: 1.0')\nos._exit(0)", "exit code 0"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "segmentation fault"),
    "endless recursion": ("def add(a, b):\n    return add(a, b)", "RecursionError"),
    "recursion off its stack": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    return [add(a, b)]",
        "segmentation|memory|Memory|time",
    ),
    "nested value": ("def add(a, b):\n    x = []\n    for _ in range(10**5):\n        x = [x]\n    return x", "deeper"),
    "huge value": ("def add(a, b):\n    return 'x' * 10**8", "larger than"),
    "endless value": ("import itertools\ndef add(a, b):\n    return itertools.count()", "larger than"),
    "huge frame": (FRAMES + "everywhere(bytes([255]) * 8)\nimport time\ntime.sleep(99)", "sent a value of"),
    "equal to everything": (
        "class Any(int):\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any(0)",
        "AssertionError",
    ),
    "an object equal to everything": (
        "class Any:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return Any()",
        "of type Any",
    ),
    "no assertions": (
        "import builtins, unittest\nbuiltins.AssertionError = type('Never', (BaseException,), {})\n"
        "unittest.TestCase.assertEqual = lambda *_: None\n"
        "def check(candidate):\n    pass\ndef add(a, b):\n    return 0",
        "AssertionError",
    ),
    "raises the test's success": ("def add(a, b):\n    raise SystemExit(0)", "SystemExit"),
    "searches for the tests": (
        "import gc, sys\ndef add(a, b):\n"
        "    frame, seen = sys._getframe(), list(gc.get_objects())\n"
        "    while frame:\n        seen.append(frame.f_locals)\n        frame = frame.f_back\n"
        "    return a + b if 'candidate' + chr(40) + '5, 6' in repr(seen) else 0",
        "AssertionError",
    ),
    "replaces the runner": (
        "import sys\ninside = sys.modules['inside.candidate']\n"
        "for name in list(inside.OPERATIONS):\n"
        "    inside.OPERATIONS[name] = lambda *_: ('test', True, None)",
        "turn|TypeError|Error",
    ),
    "writes a verdict": (
        FRAMES + "everywhere(frame(text(b'test'), b'T', b'N') + frame(text(b'ended'), b'i' + b'\\0\\0\\0\\x010'))\n"
        "def add(a, b):\n    return 0",
        "turn",
    ),
    "writes a verdict in the call": (
        FRAMES + "def add(a, b):\n    everywhere(frame(text(b'test'), b'T', b'N'))\n    return 0",
        "Error",
    ),
    "answers ahead": (
        FRAMES + "three = b'b' + struct.pack('>I', 6) + b'i' + struct.pack('>I', 1) + b'3'\n"
        "everywhere(frame(text(b'done'), b'N', b'N') + frame(text(b'done'), three, b'N') * 99)",
        "AssertionError",
    ),
    "pickle in the pipe": (
        FRAMES + "import pickle\nclass Evil:\n    def __reduce__(self):\n"
        "        return (os.system, ('touch /tmp/evil',))\n"
        "data = pickle.dumps(Evil())\n"
        "def add(a, b):\n    everywhere(struct.pack('>I', len(data)) + data)\n    return 0",
        "not a value|turn",
    ),
    "closes its pipe": ("import os, time\nos.closerange(0, 64)\ntime.sleep(99)", "closed its pipe|exit code|time"),
    "becomes another program": (
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'print(\"passed\")'])",
        "exit code|turn|Error",
    ),
    "threads that outlive": (
        "import threading\ndef spin():\n    while True:\n        pass\n"
        "for _ in range(4):\n    threading.Thread(target=spin).start()\ndef add(a, b):\n    return 0",
        "AssertionError|time",
    ),
    "leaves at exit": (
        "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b):\n    return 0",
        "AssertionError",
    ),
    "does not compile": ("def add(a, b:\n    return a + b", "SyntaxError"),
    "null bytes": ("def add(a, b):\n    return a + b\n\0", "null bytes|SyntaxError"),
    "nothing": ("", "defines no function add"),
}
