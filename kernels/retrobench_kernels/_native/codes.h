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

#if defined(__AVX512BF16__)
// 32 codes as bf16, which holds them exactly.
static inline __m512i codes_of_4_bits(const int8_t* p) {
  // bf16 of 0..7 and -8..-1, twice: a place is a whole byte, whose lowest five bits count
  alignas(64) static const uint16_t NUMBER[32] = {
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
      0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
      0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
  __m256i pair = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  __m512i place = _mm512_inserti64x4(_mm512_castsi256_si512(pair), _mm256_srli_epi16(pair, 4), 1);
  return _mm512_permutexvar_epi16(place, _mm512_load_si512(NUMBER));
}
static inline __m512i codes_of_8_bits(const int8_t* p) {
  auto part = [](const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
  };
  return (__m512i)_mm512_cvtne2ps_pbh(part(p + 16), part(p));
}
#endif
