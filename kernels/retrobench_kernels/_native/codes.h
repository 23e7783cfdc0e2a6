// Vectors in 8 or 4 bits (codes.py): mean + scale * code, one scale per block of dims.
#pragma once
#include "simd.h"

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

  // Walks through a vector: two vectors of scaled codes at a time, for dims `low` and `high` on.
  struct Row {
    const int8_t* code;
    const f16* scale;
    int bits, block, done, low, high;  // block: dims that share a scale
    float s;

    void next(vf& a, vf& b) {
      if (done % block == 0) s = number(*scale++);
      if (bits == 8) {
        low = done;
        high = done + W;
        a = widen(code + low) * s;
        b = widen(code + high) * s;
      } else {  // a block's first half is in the low bits
        low = done / block * block + done % block / 2;
        high = low + block / 2;
        vi pair = integers(code + done / 2);
        a = __builtin_convertvector((pair << 28) >> 28, vf) * s;
        b = __builtin_convertvector(pair >> 4, vf) * s;
      }
      done += 2 * W;
    }
    static vi integers(const int8_t* p) { return __builtin_convertvector(*(const vb_u*)p, vi); }
    static vf widen(const int8_t* p) { return __builtin_convertvector(integers(p), vf); }
  };

  int row_bytes(int D) const { return D * bits / 8; }
  int blocks(int D) const { return bits == 4 ? D / 32 : 1; }
  Codes head(long i, long C, int D) const {
    return {code + i * C * row_bytes(D), scale + i * C * blocks(D), mean + i * D, bits};
  }
  Row row(long i, int D) const {
    return {code + i * row_bytes(D), scale + i * blocks(D), bits, D / blocks(D), 0, 0, 0, 0.f};
  }
  // out = weight * vector of row i
  void unpack(long i, int D, float weight, float* out) const {
    Row from = row(i, D);
    for (int d = 0; d < D; d += 2 * W) {
      vf a, b;
      from.next(a, b);
      store(out + from.low, (a + load(mean + from.low)) * weight);
      store(out + from.high, (b + load(mean + from.high)) * weight);
    }
  }
};
