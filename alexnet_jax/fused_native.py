# mypy: ignore-errors
"""What the fused block's kernels do in C++: wide loads and stores, and numbers that carry a place.

A number with a place (row * 3 + column in a pooling window, or 15) has it in its last four bits,
where it changes the number by 2e-6 at most.
"""

import functools
from typing import Any

import warp as wp

CHANNELS = 8  # of a thread: 16 bytes of bfloat16

Own = wp.types.vector(length=CHANNELS, dtype=wp.float32)
Near = wp.types.vector(length=CHANNELS + 4, dtype=wp.float32)  # and two on either side


@wp.struct
class Strip:
    """What a thread works on: its channels in the columns of an image."""

    image: int
    height: int  # of x
    width: int
    channels: int
    channel: int  # the thread's first
    left: int  # whether the normalization reaches the channels before, 0 or 1
    right: int  # and those after


@wp.func
def strip(image: int, height: int, width: int, channels: int, span: int, group: int) -> Strip:
    s = Strip()
    s.image = image
    s.height = height
    s.width = width
    s.channels = channels
    s.channel = group * CHANNELS
    s.left = wp.where(s.channel % span == 0, 0, 1)
    s.right = wp.where((s.channel + CHANNELS) % span == 0, 0, 1)
    return s


@functools.cache
def load(dtype: Any) -> Any:
    """Return a function that reads a thread's channels of a pixel and two on either side.

    Its arguments: the array (images, pixels x channels), the thread's strip, the pixel's number and
    whether there is such a pixel, 0 or 1. What does not exist is zero.
    """
    two = dtype is wp.bfloat16  # channels in a word of 32 bits
    side, own = (1, CHANNELS // 2) if two else (2, CHANNELS)

    def read(first: int, words: int, condition: str) -> str:
        """Read `words` words by the widest access that their number allows."""
        wide = min(words, 4)
        return f"""
    if ({condition}) {{
        struct alignas({4 * wide}) Piece {{ unsigned word[{wide}]; }};
        for (int i = 0; i < {words}; i += {wide}) {{
            const Piece piece = *reinterpret_cast<const Piece*>(start + {first} + i);
            for (int j = 0; j < {wide}; j++) words[{first + side} + i + j] = piece.word[j];
        }}
    }}"""

    unpacked = """
        const unsigned low = words[i] << 16, high = words[i] & 0xffff0000u;
        memcpy(&out[2 * i], &low, 4);
        memcpy(&out[2 * i + 1], &high, 4);"""

    @wp.func_native(f"""
    const unsigned* start = reinterpret_cast<const unsigned*>(
        reinterpret_cast<const char*>(x.data) + size_t(image) * x.strides[0]
        + size_t(at) * sizeof(*x.data));
    unsigned words[{own + 2 * side}] = {{}};
    {read(-side, side, "here && left")}
    {read(0, own, "here")}
    {read(own, side, "here && right")}
    wp::vec_t<{CHANNELS + 4}, float> out;
    for (int i = 0; i < {own + 2 * side}; i++) {{
        {unpacked if two else "memcpy(&out[i], &words[i], 4);"}
    }}
    return out;
    """)
    def load_at(
        x: wp.array2d(dtype=dtype), image: int, at: int, here: int, left: int, right: int
    ) -> Near: ...

    @wp.func
    def load_channels(x: wp.array2d(dtype=dtype), s: Strip, pixel: int, here: int) -> Near:
        return load_at(x, s.image, pixel * s.channels + s.channel, here, s.left, s.right)

    return load_channels


@functools.cache
def store(dtype: Any) -> Any:
    """Return a function that writes a thread's channels of a pixel."""
    rounded = """
        const wp::bfloat16 low = v[2 * i], high = v[2 * i + 1];
        words[i] = unsigned(low.u) | unsigned(high.u) << 16;"""
    own = CHANNELS // 2 if dtype is wp.bfloat16 else CHANNELS

    @wp.func_native(f"""
    struct alignas(16) Piece {{ unsigned word[4]; }};
    unsigned words[{own}];
    for (int i = 0; i < {own}; i++) {{
        {rounded if dtype is wp.bfloat16 else "memcpy(&words[i], &v[i], 4);"}
    }}
    Piece* to = reinterpret_cast<Piece*>(
        reinterpret_cast<char*>(x.data) + size_t(image) * x.strides[0]
        + size_t(at) * sizeof(*x.data));
    for (int i = 0; i < {own}; i += 4)
        to[i / 4] = Piece{{words[i], words[i + 1], words[i + 2], words[i + 3]}};
    """)
    def store_at(x: wp.array2d(dtype=dtype), image: int, at: int, v: Own): ...

    @wp.func
    def store_channels(x: wp.array2d(dtype=dtype), s: Strip, pixel: int, v: Own):
        store_at(x, s.image, pixel * s.channels + s.channel, v)

    return store_channels


@wp.func_native("""
#ifdef __CUDA_ARCH__
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
#else
    return 1.0f / sqrtf(v);
#endif
""")
def rsqrt(v: float) -> float: ...


@wp.func_native("""
#ifdef __CUDA_ARCH__
    float r;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
#else
    return sqrtf(v);
#endif
""")
def sqrt(v: float) -> float: ...


@wp.func_native("""
#if __CUDA_ARCH__ >= 800
    float r;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(v), "f"(0.0f));
    return r;
#else
    return v <= 0.0f ? 0.0f : v;
#endif
""")
def relu(v: float) -> float:
    """Return the larger of v and 0, which is never -0.0 (`larger` compares bits); NaN of NaN."""


@wp.func_native("""
    unsigned x, y;
    memcpy(&x, &a, 4);
    memcpy(&y, &b, 4);
    return x > y;
""")
def larger(a: float, b: float) -> bool:
    """Return whether a > b, of numbers that are not negative: by their bits, NaN the largest."""


@wp.func_native("""
    unsigned bits;
    memcpy(&bits, &v, 4);
    bits = (bits & ~15u) | (place & 15u);
    memcpy(&v, &bits, 4);
    return v;
""")
def marked(v: float, place: wp.uint32) -> float:
    """Return v with `place` in its last four bits."""


@wp.func_native("""
    unsigned bits;
    memcpy(&bits, &v, 4);
    bits += more;
    memcpy(&v, &bits, 4);
    return v;
""")
def moved(v: float, more: int) -> float:
    """Return v with `more` added to the place in its last bits."""


@wp.func_native("""
    unsigned bits;
    memcpy(&bits, &v, 4);
    return bits & 15u;
""")
def place_of(v: float) -> wp.uint32: ...
