// Vectors of the machine's width, loads of fp32 / bf16 / fp16 keys, exp.
// GCC vector extensions, so that the same source runs on AVX-512, AVX2, SSE and Arm.
#pragma once
#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef float vf_u __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi_u __attribute__((vector_size(4 * W), aligned(2), may_alias));
typedef uint16_t vh_u __attribute__((vector_size(2 * W), aligned(2), may_alias));

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

static inline vf splat(float x) { return vf{} + x; }
static inline vf load(const float* p) { return *(const vf_u*)p; }
static inline void store(float* p, vf x) { *(vf_u*)p = x; }
static inline vf vmax(vf a, vf b) { return a > b ? a : b; }
static inline vf vmin(vf a, vf b) { return a < b ? a : b; }

// 2W consecutive numbers as two vectors. bf16 comes apart into even and odd places (two cheap
// instructions); `place` says which element a lane holds.
static inline void load_pair(const float* p, vf& a, vf& b) { a = load(p); b = load(p + W); }
static inline void load_pair(const bf16* p, vf& a, vf& b) {
  vi x = *(const vi_u*)p;
  a = (vf)(x << 16);
  b = (vf)(x & (int32_t)0xffff0000);
}
static inline vf widen(const f16* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  vi x = __builtin_convertvector(*(const vh_u*)p, vi);
  vf magnitude = (vf)((x & 0x7fff) << 13) * 0x1p112f;
  return (vf)((vi)magnitude | ((x & 0x8000) << 16));
#endif
}
static inline void load_pair(const f16* p, vf& a, vf& b) { a = widen(p); b = widen(p + W); }

template <class T> constexpr int place(int i) { return i; }
template <> constexpr int place<bf16>(int i) {
  return i / (2 * W) * (2 * W) + (i % (2 * W) < W ? 2 * (i % W) : 2 * (i % W) + 1);
}

// exp for x in [-87, 88]; 0 below. Relative error 2e-7.
static inline vf vexp(vf x) {
  vf t = vmin(x, splat(88.f)) * 1.44269504f;
  vi tiny = x < -87.f;
  t = vmax(t, splat(-126.f));
  vf n = (t + 12582912.f) - 12582912.f;  // round to nearest
  vf f = t - n;
  vf p = splat(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.f;
  vi scaled = (vi)p + (__builtin_convertvector(n, vi) << 23);
  return (vf)(scaled & ~tiny);
}

// out[i] = sum of the lanes of a[i], for eight vectors
static inline void sum8(const vf a[8], float* out) {
#if defined(__AVX2__)
  __m256 x[8];
  for (int i = 0; i < 8; i++) {
#if defined(__AVX512F__)
    __m512d whole = (__m512d)a[i];
    x[i] = _mm256_add_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(whole)),
                         _mm256_castpd_ps(_mm512_extractf64x4_pd(whole, 1)));
#else
    x[i] = (__m256)a[i];
#endif
  }
  for (int i = 0; i < 8; i += 4) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(x[i], x[i + 1]), _mm256_hadd_ps(x[i + 2], x[i + 3]));
    _mm_storeu_ps(out + i, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
  }
#else
  for (int i = 0; i < 8; i++) {
    float sum = 0;
    for (int j = 0; j < W; j++) sum += a[i][j];
    out[i] = sum;
  }
#endif
}

// bf16 to and from fp32, to nearest even; NaN stays NaN
static inline float widen(bf16 x) {
  uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}
static inline bf16 narrow(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if (x != x) return {(uint16_t)(bits >> 16 | 0x40)};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
