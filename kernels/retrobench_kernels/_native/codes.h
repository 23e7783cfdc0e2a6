// Vectors in 8 or 4 bits (codes.py): mean + scale * code, one scale per block of dims.
#pragma once
#include "simd.h"

constexpr int BLOCK_DIMS = 32;  // dims that share a scale, of codes of 4 bits

typedef int8_t vb_u __attribute__((vector_size(W), aligned(1)));

static inline float number(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  uint32_t bits = (uint32_t)(x.bits & 0x7fff) << 13;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  y *= 0x1p112f;
  return x.bits & 0x8000 ? -y : y;
#endif
}

struct Codes {  // of all heads, or (`head`) of one; without code, the vectors are stored as they are
  const int8_t* code;
  const f16* scale;
  const float* mean;
  int bits;

  static vi integers(const int8_t* p) {  // the compiler would go through them one by one
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    return __builtin_convertvector(*(const vb_u*)p, vi);
#endif
  }
  static vf widen(const int8_t* p) { return __builtin_convertvector(integers(p), vf); }

  int row_bytes(int D) const { return D * bits / 8; }
  int blocks(int D) const { return bits == 4 ? D / BLOCK_DIMS : 1; }
  Codes head(long i, long C, int D) const {
    return {code + i * C * row_bytes(D), scale + i * C * blocks(D), mean + i * D, bits};
  }
  // use(low, high, a, b) for every two vectors of row i without its mean: a holds the dims from
  // `low` on, b those from `high` on.
  template <class F> void walk(long i, int D, const F& use) const {
    const int8_t* p = code + i * row_bytes(D);
    const f16* s = scale + i * blocks(D);
    if (bits == 8) {
      float step = number(*s);
      for (int d = 0; d < D; d += 2 * W) use(d, d + W, widen(p + d) * step, widen(p + d + W) * step);
      return;
    }
    for (int d = 0; d < D; d += BLOCK_DIMS) {  // its first half is in the low bits
      float step = number(*s++);
      for (int j = d; j < d + BLOCK_DIMS / 2; j += W, p += W) {
        vi pair = integers(p);
        use(j, j + BLOCK_DIMS / 2, __builtin_convertvector((pair << 28) >> 28, vf) * step,
            __builtin_convertvector(pair >> 4, vf) * step);
      }
    }
  }
  // out = weight * vector of row i
  void unpack(long i, int D, float weight, float* out) const {
    walk(i, D, [&](int low, int high, vf a, vf b) {
      store(out + low, (a + load(mean + low)) * weight);
      store(out + high, (b + load(mean + high)) * weight);
    });
  }
};
