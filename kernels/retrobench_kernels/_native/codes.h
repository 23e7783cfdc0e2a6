// Vectors in 8 or 4 bits (codes.py): mean + scale * code, one scale per block of dims.
#pragma once
#include "lanes.h"

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

static vi integers(const int8_t* p) {  // the compiler would go through them one by one
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return __builtin_convertvector(*(const vb_u*)p, vi);
#endif
}

struct Codes {  // of all heads, or (`head`) of one
  const int8_t* code;
  const f16* scale;
  const float* mean;
  int bits;

  int row_bytes(int D) const { return D * bits / 8; }
  int blocks(int D) const { return bits == 4 ? D / BLOCK_DIMS : 1; }
  Codes head(long i, long C, int D) const {
    return {code + i * C * row_bytes(D), scale + i * C * blocks(D), mean + i * D, bits};
  }
};

// What weighted sums read: rows as they are, or codes without their mean. `read` gives BLOCK_DIMS
// numbers of row i from dim d on; lane j of them is dim `place(j)`.
constexpr int PARTS = BLOCK_DIMS / W;

template <class T> struct Rows {
  const T* rows;
  int D;
  static int place(int i) { return ::place<T>(i); }
  FETCHES void prepare(long i) const { fetch(rows + i * D, D * sizeof(T)); }
  void read(long i, int d, vf (&x)[PARTS]) const {
    for (int j = 0; j < PARTS; j += 2) load_pair(rows + i * D + d + j * W, x[j], x[j + 1]);
  }
};

template <int BITS> struct Decoded {
  const Codes& c;
  int D;
  static int place(int i) { return i; }
  FETCHES void prepare(long i) const {
    fetch(c.code + i * c.row_bytes(D), c.row_bytes(D));
    fetch(c.scale + i * c.blocks(D), c.blocks(D) * sizeof(f16));
  }
  void read(long i, int d, vf (&x)[PARTS]) const {
    const int8_t* p = c.code + i * c.row_bytes(D) + d * BITS / 8;
    float step = number(c.scale[i * c.blocks(D) + (BITS == 4 ? d / BLOCK_DIMS : 0)]);
    for (int j = 0; BITS == 8 && j < PARTS; j++)
      x[j] = __builtin_convertvector(integers(p + j * W), vf) * step;
    for (int j = 0; BITS == 4 && j < PARTS / 2; j++) {  // the first half is in the low bits
      vi pair = integers(p + j * W);
      x[j] = __builtin_convertvector((pair << 28) >> 28, vf) * step;
      x[j + PARTS / 2] = __builtin_convertvector(pair >> 4, vf) * step;
    }
  }
};
