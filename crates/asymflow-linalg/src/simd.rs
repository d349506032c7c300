//! Sixteen f32 lanes on AVX-512, on AVX2 with FMA and in portable code, chosen at run time.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Lanes of a [`Simd::V`].
pub(crate) const LANES: usize = 16;

/// Vector operations of one instruction set.
///
/// All methods are unsafe for two reasons: the processor must have the instruction set, which [`dispatch`] checks,
/// and pointers must be valid for sixteen values.
pub(crate) trait Simd {
    /// Sixteen values.
    type V: Copy;
    /// Vectors of a row that a register tile of six rows can hold.
    const TILE_VECTORS: usize;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// Says that the sixteen values at `at` are read soon; any address will do.
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}

    /// The lanes of `lanes`, from `from + lane · step`; zero in the others. Only the lanes asked for need be valid.
    #[inline(always)]
    unsafe fn load_some(from: *const f32, step: usize, lanes: &Lanes) -> Self::V {
        let mut values = [0.0; LANES];
        for (lane, value) in values.iter_mut().enumerate().take(lanes.end).skip(lanes.start) {
            // SAFETY: the caller vouches for these lanes.
            *value = unsafe { *from.wrapping_add(lane * step) };
        }
        // SAFETY: sixteen values.
        unsafe { Self::load(values.as_ptr()) }
    }

    /// The first `count` lanes.
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: Self::V, count: usize) {
        let mut values = [0.0; LANES];
        // SAFETY: the caller vouches for `count` values.
        unsafe {
            Self::store(values.as_mut_ptr(), v);
            for (lane, value) in values.iter().enumerate().take(count) {
                *to.add(lane) = *value;
            }
        }
    }

    /// Transposes 16 rows `from_pitch` apart into 16 rows `to_pitch` apart.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
        for row in 0..LANES {
            for col in 0..LANES {
                // SAFETY: the caller vouches for 16 rows of 16 values on both sides.
                unsafe { *to.add(col * to_pitch + row) = *from.add(row * from_pitch + col) };
            }
        }
    }
}

/// Some consecutive lanes, and the values to load for them where every second one is taken.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lanes {
    start: usize,
    end: usize,
    bits: u16,
    /// Bits of 32 values.
    alternate: u32,
}

impl Lanes {
    /// Lanes `start..end`, at most sixteen.
    #[inline(always)]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        let (start, end) = (start.min(LANES), end.min(LANES));
        let below = |bit: usize| ((1_u64 << bit) - 1) as u32;
        if start >= end {
            return Self::default();
        }
        let bits = (below(end) & !below(start)) as u16;
        Self { start, end, bits, alternate: below(2 * end - 1) & !below(2 * start) }
    }
}

/// Code generic over the instruction set. `run` and all it calls must be `#[inline(always)]`, and vector operations
/// must not stand in closures, or the vector code is compiled without the instruction set.
pub(crate) trait Kernel {
    /// # Safety
    /// Those of the pointers that the kernel holds; the processor must have the instruction set `S`.
    unsafe fn run<S: Simd>(&self);
}

/// Runs `kernel` with the widest instruction set of this processor.
///
/// # Safety
/// The pointers that the kernel holds must be valid as the kernel says.
pub(crate) unsafe fn dispatch<K: Kernel>(kernel: &K) {
    match Level::here() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX-512; the caller vouches for the kernel.
        Level::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has AVX2 and FMA; the caller vouches for the kernel.
        Level::Avx2 => unsafe { run_avx2(kernel) },
        // SAFETY: portable code runs anywhere; the caller vouches for the kernel.
        Level::Portable => unsafe { kernel.run::<Portable>() },
    }
}

/// Instruction sets, the widest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The widest of this processor.
    fn here() -> Self {
        #[cfg(test)]
        if let Some(level) = *tests::LEVEL.read().unwrap() {
            return level;
        }
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn run_avx512<K: Kernel>(kernel: &K) {
    // SAFETY: this function is only entered with AVX-512; the caller vouches for the kernel.
    unsafe { kernel.run::<Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: &K) {
    // SAFETY: this function is only entered with AVX2 and FMA; the caller vouches for the kernel.
    unsafe { kernel.run::<Avx2>() }
}

/// Sixteen lanes in one register.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx512;

// SAFETY (whole implementation): every method needs AVX-512 and valid pointers, as the trait says.
#[cfg(target_arch = "x86_64")]
impl Simd for Avx512 {
    type V = __m512;
    const TILE_VECTORS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load_some(from: *const f32, step: usize, lanes: &Lanes) -> __m512 {
        unsafe {
            match step {
                1 => _mm512_maskz_loadu_ps(lanes.bits, from),
                2 => {
                    let low = _mm512_maskz_loadu_ps(lanes.alternate as u16, from);
                    let high = _mm512_maskz_loadu_ps((lanes.alternate >> 16) as u16, from.wrapping_add(LANES));
                    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                    _mm512_permutex2var_ps(low, even, high)
                }
                _ => {
                    let mut values = [0.0; LANES];
                    for (lane, value) in values.iter_mut().enumerate().take(lanes.end).skip(lanes.start) {
                        *value = *from.wrapping_add(lane * step);
                    }
                    _mm512_loadu_ps(values.as_ptr())
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, v: __m512, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, ((1_u32 << count) - 1) as u16, v) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
        unsafe {
            let mut r = [_mm512_setzero_ps(); LANES];
            for (i, row) in r.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * from_pitch));
            }
            // Pairs of rows, then groups of four: t[4g + c] holds column c of each 128-bit lane for rows 4g..4g+4.
            let mut t = r;
            for g in 0..4 {
                let (a, b, c, d) = (r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]);
                let (low_ab, high_ab) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (low_cd, high_cd) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
                t[4 * g] = _mm512_shuffle_ps::<0x44>(low_ab, low_cd);
                t[4 * g + 1] = _mm512_shuffle_ps::<0xee>(low_ab, low_cd);
                t[4 * g + 2] = _mm512_shuffle_ps::<0x44>(high_ab, high_cd);
                t[4 * g + 3] = _mm512_shuffle_ps::<0xee>(high_ab, high_cd);
            }
            // Lane l of t[4g + c] belongs to row 4l + c of the result, values 4g..4g+4.
            for c in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x88>(t[c], t[4 + c]);
                let high = _mm512_shuffle_f32x4::<0xdd>(t[c], t[4 + c]);
                let low2 = _mm512_shuffle_f32x4::<0x88>(t[8 + c], t[12 + c]);
                let high2 = _mm512_shuffle_f32x4::<0xdd>(t[8 + c], t[12 + c]);
                _mm512_storeu_ps(to.add(c * to_pitch), _mm512_shuffle_f32x4::<0x88>(low, low2));
                _mm512_storeu_ps(to.add((4 + c) * to_pitch), _mm512_shuffle_f32x4::<0x88>(high, high2));
                _mm512_storeu_ps(to.add((8 + c) * to_pitch), _mm512_shuffle_f32x4::<0xdd>(low, low2));
                _mm512_storeu_ps(to.add((12 + c) * to_pitch), _mm512_shuffle_f32x4::<0xdd>(high, high2));
            }
        }
    }
}

/// AVX2 with FMA: two registers.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx2;

// SAFETY (whole implementation): every method needs AVX2 and FMA and valid pointers, as the trait says.
#[cfg(target_arch = "x86_64")]
impl Simd for Avx2 {
    type V = [__m256; 2];
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        unsafe {
            _mm256_storeu_ps(to, v[0]);
            _mm256_storeu_ps(to.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
}

pub(crate) struct Portable;

impl Simd for Portable {
    type V = [f32; LANES];
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen values.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for sixteen values.
        unsafe { to.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::RwLock;

    use super::Level;

    /// The level to use instead of the widest.
    pub(crate) static LEVEL: RwLock<Option<Level>> = RwLock::new(None);

    /// Calls `run` with each level that this processor has.
    pub(crate) fn at_each_level(mut run: impl FnMut(Level)) {
        let widest = Level::here();
        #[cfg(target_arch = "x86_64")]
        let levels = [Level::Portable, Level::Avx2, Level::Avx512];
        #[cfg(not(target_arch = "x86_64"))]
        let levels = [Level::Portable];
        for level in levels.into_iter().filter(|level| *level <= widest) {
            *LEVEL.write().unwrap() = Some(level);
            run(level);
        }
        *LEVEL.write().unwrap() = None;
    }
}
