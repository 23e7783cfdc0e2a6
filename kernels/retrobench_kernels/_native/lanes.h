// How the scores of a block of tokens lie in vectors, and the two products of attention in that
// order: for all types and machines (Interleaved), and for bf16 with AVX512_BF16 (Quads).
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>
#include "simd.h"

constexpr int BLOCK = 16;     // tokens handled at a time: K and V of two blocks fill a part of L1
constexpr int MAX_HEADS = 4;  // query heads that share each load of a key
constexpr int SCORES = BLOCK * MAX_HEADS + W;  // room for the scores of a block

template <class T> struct Tokens {  // a block of tokens, by address
  const T* k[BLOCK];
  const T* v[BLOCK];
  int n = 0;
};

// Always inline: GCC drops calls of a function that does nothing but prefetch.
#define FETCHES __attribute__((always_inline)) inline

static FETCHES void fetch(const void* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)p + i, 0, 3);
}

// Scores as [token][head]: lane j of a vector belongs to head j % NH.
template <class T, int NH> struct Interleaved {
  using Type = T;
  static constexpr int HEADS = NH;
  static int at(int token, int h) { return token * NH + h; }
  static int lane(int h) { return h; }
  static int width(int n) { return (n * NH + W - 1) / W * W; }
  static int place(int d) { return ::place<T>(d); }  // dim of element d of q and acc

  static void load(const float* query, int h, int D, std::vector<float>& q) {
    q.resize(NH * D);
    for (int i = 0; i < D; i++) q[h * D + i] = query[place(i)];
  }
  static vf most(vf x) {  // each head's largest, in all of its lanes
    for (int h = 0; h < NH; h++) {
      float top = x[h];
      for (int j = h; j < W; j += NH) top = std::max(top, x[j]);
      for (int j = h; j < W; j += NH) x[j] = top;
    }
    return x;
  }
  static float sum(vf x, int h) {
    float total = 0;
    for (int j = h; j < W; j += NH) total += x[j];
    return total;
  }
  static void copy(const float* score, int h, int n, float* out) {  // scores of one head
    for (int i = 0; i < n; i++) out[i] = score[at(i, h)];
  }
  static void keep(vf weight, float* place) { store(place, weight); }

  // score of q_h . k_i for n keys (a multiple of 8 / NH), fetching the keys of `next` meanwhile
  static void scores(const std::vector<float>& q, const T* const* k, int n, int D,
                     const Tokens<T>* next, float* score) {
    constexpr int KEYS = 8 / NH;
    for (int i = 0; i < n; i += KEYS) {
      for (int j = i; next && j < std::min(i + KEYS, next->n); j++)
        fetch(next->k[j], D * sizeof(T));
      vf a[8] = {};
      for (int d = 0; d < D; d += 2 * W) {
        vf low[KEYS], high[KEYS];
        for (int j = 0; j < KEYS; j++) load_pair(k[i + j] + d, low[j], high[j]);
        for (int h = 0; h < NH; h++) {
          vf x = ::load(q.data() + h * D + d);
          for (int j = 0; j < KEYS; j++) a[j * NH + h] += x * low[j];
          x = ::load(q.data() + h * D + d + W);
          for (int j = 0; j < KEYS; j++) a[j * NH + h] += x * high[j];
        }
      }
      sum8(a, score + i * NH);
    }
  }

  // acc = decay * acc + sum over n tokens of weight * v, fetching the same rows of `ahead`
  static void add(const T* const* v, int n, const float* weight, vf decay, int D,
                  const T* const* ahead, float* acc) {
    constexpr int UN = 4 / NH, LINE = 64 / sizeof(T);
    int d = 0;
    for (; d + UN * 2 * W <= D; d += UN * 2 * W)
      add_part<UN>(v, n, weight, decay, D, d, d % LINE ? nullptr : ahead, acc);
    for (; d < D; d += 2 * W)
      add_part<1>(v, n, weight, decay, D, d, d % LINE ? nullptr : ahead, acc);
  }

 private:
  template <int UN>  // UN pairs of vectors of each row
  static void add_part(const T* const* v, int n, const float* weight, vf decay, int D, int d,
                       const T* const* ahead, float* acc) {
    vf a[NH][2 * UN];
    for (int h = 0; h < NH; h++)
      for (int u = 0; u < 2 * UN; u++) a[h][u] = ::load(acc + h * D + d + u * W) * decay[h];
    for (int i = 0; i < n; i++) {
      if (ahead) fetch(ahead[i] + d, UN * 2 * W * sizeof(T));
      for (int u = 0; u < UN; u++) {
        vf low, high;
        load_pair(v[i] + d + u * 2 * W, low, high);
        for (int h = 0; h < NH; h++) {
          float w = weight[i * NH + h];
          a[h][2 * u] += low * w;
          a[h][2 * u + 1] += high * w;
        }
      }
    }
    for (int h = 0; h < NH; h++)
      for (int u = 0; u < 2 * UN; u++) store(acc + h * D + d + u * W, a[h][u]);
  }
};

#if defined(__AVX512BF16__)
// Scores as [four tokens][head][token]: the h-th quarter of a vector belongs to head h. A key is
// read 16 bytes at a time, for all heads; no head is summed across a vector. Weights are rounded to
// bf16 (each head's largest is 1 when it comes), and values are added two tokens at a time.
struct Quads {
  using Type = bf16;
  static constexpr int HEADS = 4;
  static int at(int token, int h) { return token / 4 * 16 + h * 4 + token % 4; }
  static int lane(int h) { return 4 * h; }
  static int width(int n) { return (n + 3) / 4 * 16; }
  static int place(int d) {  // two rows are interleaved within 16 bytes
    int j = d % 32;
    return d / 32 * 32 + j % 16 / 4 * 8 + j / 16 * 4 + j % 4;
  }

  static void load(const float* query, int h, int D, std::vector<float>& q) {
    q.resize(2 * D);  // bf16 [D / 8][head][8]; exact, for the query came as bf16
    uint16_t* to = (uint16_t*)q.data();
    for (int i = 0; i < D; i++) {
      uint32_t bits;
      memcpy(&bits, query + i, 4);
      to[i / 8 * 32 + h * 8 + i % 8] = bits >> 16;
    }
  }
  static float query(const std::vector<float>& q, int h, int d) {  // what `load` has put there
    return ::widen(((const bf16*)q.data())[d / 8 * 32 + h * 8 + d % 8]);
  }
  static vf most(vf x) {
    __m512 a = (__m512)x;
    a = _mm512_max_ps(a, _mm512_permute_ps(a, 0x4e));
    return (vf)_mm512_max_ps(a, _mm512_permute_ps(a, 0xb1));
  }
  static float sum(vf x, int h) { return x[4 * h] + x[4 * h + 1] + (x[4 * h + 2] + x[4 * h + 3]); }
  static void copy(const float* score, int h, int n, float* out) {
    int i = 0;
    for (; i + 4 <= n; i += 4) memcpy(out + i, score + at(i, h), 16);
    for (; i < n; i++) out[i] = score[at(i, h)];
  }
  static void keep(vf weight, float* place) {  // pairs of tokens, in the first half of the place
    _mm256_storeu_si256((__m256i*)place, (__m256i)_mm512_cvtneps_pbh((__m512)weight));
  }

  // n: a multiple of 8
  static void scores(const std::vector<float>& q, const bf16* const* k, int n, int D,
                     const Tokens<bf16>* next, float* score) {
    for (int i = 0; i < n; i += 8) {
      for (int j = i; next && j < std::min(i + 8, next->n); j++) fetch(next->k[j], D * 2);
      __m512 a[8], b[8];
      for (int j = 0; j < 8; j++) a[j] = b[j] = _mm512_setzero_ps();
      for (int d = 0; d < D; d += 16) {
        __m512bh x = (__m512bh)_mm512_loadu_si512((const void*)(q.data() + 2 * d));
        __m512bh y = (__m512bh)_mm512_loadu_si512((const void*)(q.data() + 2 * d + 16));
        for (int j = 0; j < 8; j++) {
          const __m128i* part = (const __m128i*)(k[i + j] + d);
          a[j] = _mm512_dpbf16_ps(a[j], x, quarters(part));
          b[j] = _mm512_dpbf16_ps(b[j], y, quarters(part + 1));
        }
      }
      for (int j = 0; j < 8; j++) a[j] = _mm512_add_ps(a[j], b[j]);
      _mm512_storeu_ps(score + i * 4, sums(a));
      _mm512_storeu_ps(score + i * 4 + 16, sums(a + 4));
    }
  }

  // the quarters of four vectors, each summed
  static __m512 sums(const __m512* a) {
    auto halves = [](__m512 x, __m512 y) {
      return _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    };
    __m512d x = (__m512d)halves(a[0], a[1]), y = (__m512d)halves(a[2], a[3]);
    return _mm512_add_ps((__m512)_mm512_unpacklo_pd(x, y), (__m512)_mm512_unpackhi_pd(x, y));
  }

  static void add(const bf16* const* v, int n, const float* weight, vf decay, int D,
                  const bf16* const* ahead, float* acc) {
    int d = 0;
    for (; d + 64 <= D; d += 64) add_part<2>(v, n, weight, decay, D, d, ahead, acc);
    if (d < D) add_part<1>(v, n, weight, decay, D, d, ahead, acc);
  }

 private:
  // 16 bytes, four times
  static __m512bh quarters(const __m128i* p) {
    return (__m512bh)_mm512_broadcast_i32x4(_mm_loadu_si128(p));
  }
  template <int UN>  // 32 * UN dims of each row; n may be odd: row n exists and weighs nothing
  static void add_part(const bf16* const* v, int n, const float* weight, vf decay, int D, int d,
                       const bf16* const* ahead, float* acc) {
    __m512 a[4][2 * UN];
    for (int h = 0; h < 4; h++)
      for (int u = 0; u < 2 * UN; u++)
        a[h][u] = (__m512)(::load(acc + h * D + d + u * W) * decay[4 * h]);
    for (int i = 0; i < n; i += 2) {
      if (ahead) fetch(ahead[i] + d, 64 * UN), fetch(ahead[i + 1] + d, 64 * UN);
      const int32_t* pair = (const int32_t*)(weight + i / 4 * 16) + i % 4 / 2;
      for (int u = 0; u < UN; u++) {
        __m512i x = _mm512_loadu_si512((const void*)(v[i] + d + 32 * u));
        __m512i y = _mm512_loadu_si512((const void*)(v[i + 1] + d + 32 * u));
        __m512bh low = (__m512bh)_mm512_unpacklo_epi16(x, y);
        __m512bh high = (__m512bh)_mm512_unpackhi_epi16(x, y);
        for (int h = 0; h < 4; h++) {
          __m512bh w = (__m512bh)_mm512_set1_epi32(pair[2 * h]);
          a[h][2 * u] = _mm512_dpbf16_ps(a[h][2 * u], low, w);
          a[h][2 * u + 1] = _mm512_dpbf16_ps(a[h][2 * u + 1], high, w);
        }
      }
    }
    for (int h = 0; h < 4; h++)
      for (int u = 0; u < 2 * UN; u++) store(acc + h * D + d + u * W, (vf)a[h][u]);
  }
};
#endif

// Calls run(lanes) with the lanes that fit the type, the number of heads (1 to 4) and whether the
// query is exact in bf16.
template <class T, class F> void with_lanes(int heads, [[maybe_unused]] bool dot, const F& run) {
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<T, bf16>)
    if (dot) return run(Quads{});
#endif
  if (heads == 1) run(Interleaved<T, 1>{});
  else if (heads == 2) run(Interleaved<T, 2>{});
  else run(Interleaved<T, 4>{});
}
