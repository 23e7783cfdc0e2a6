// Online softmax over tokens that lie anywhere, for up to four query heads of one KV head.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>
#include "simd.h"

// A query as fp32, whichever of fp32 and bf16 it came in.
class Query {
 public:
  Query(const void* q, long n, bool is_bf16) : q_((const float*)q) {
    if (!is_bf16) return;
    wide_.resize(n);
    for (long i = 0; i < n; i++) wide_[i] = widen(((const bf16*)q)[i]);
    q_ = wide_.data();
  }
  operator const float*() const { return q_; }

 private:
  std::vector<float> wide_;
  const float* q_;
};

constexpr int BLOCK = 64;         // tokens handled at a time: K and V of a block stay in L2
constexpr int MAX_HEADS = 4;      // query heads that share each load of a key
constexpr float LOWEST = -1e30f;  // "no token yet"

// Queries of NH heads in the lane order of T, and the running softmax of each head. Scores lie as
// [token][head], so lane j of a vector belongs to head j % NH.
struct Heads {
  int nh = 0;                // 1, 2 or 4; heads beyond `used` repeat the first one
  int used = 0;
  std::vector<float> q;      // [nh][D], lanes of T
  std::vector<uint16_t> qh;  // [nh][D] bf16, for the bf16 dot product
  std::vector<float> acc;    // [nh][D], lanes of the values
  vf max, sum;

  template <class T> void load(const float* query, int heads, int D) {
    used = heads;
    nh = heads > 2 ? 4 : heads;
    q.resize(nh * D);
    qh.resize(nh * D);
    for (int h = 0; h < nh; h++) {
      const float* from = query + (h < used ? h : 0) * D;
      for (int i = 0; i < D; i++) {
        q[h * D + i] = from[place<T>(i)];
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        qh[h * D + i] = bits >> 16;  // exact: only used when the query came as bf16
      }
    }
  }
  void clear(int D) {
    acc.assign(nh * D, 0.f);
    max = splat(LOWEST);
    sum = vf{};
  }
};

// Part of a softmax: maximum, sum, and weighted values of one head in natural order.
struct Partial { float max, sum; float* acc; };

static inline void merge(Partial& into, float max, float sum, const float* acc, int D) {
  float top = std::max(into.max, max);
  float x = std::exp(into.max - top), y = std::exp(max - top);
  into.sum = into.sum * x + sum * y;
  for (int i = 0; i < D; i++) into.acc[i] = into.acc[i] * x + acc[i] * y;
  into.max = top;
}

// Adds the heads' state to `out[0..used)`.
template <class T> void unload(const Heads& s, Partial* out, int D) {
  std::vector<float> natural(D);
  for (int h = 0; h < s.used; h++) {
    float sum = 0;
    for (int j = h; j < W; j += s.nh) sum += s.sum[j];
    if (sum == 0) continue;
    for (int i = 0; i < D; i++) natural[place<T>(i)] = s.acc[h * D + i];
    merge(out[h], s.max[h], sum, natural.data(), D);
  }
}

template <class T> struct Tokens {  // a block of tokens, by address
  const T* k[BLOCK];
  const T* v[BLOCK];
  int n = 0;
};

static inline void fetch(const void* p, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)p + i, 0, 2);
}

template <class T> constexpr bool has_dot() { return false; }
#if defined(__AVX512BF16__)
template <> constexpr bool has_dot<bf16>() { return true; }
#endif

// score[i][h] = q_h . k_i for n keys (a multiple of 8 / NH), fetching the keys of `next` meanwhile
template <class T, int NH>
void scores(const Heads& s, const T* const* k, int n, int D, [[maybe_unused]] bool dot,
            const Tokens<T>* next, float* score) {
  constexpr int KEYS = 8 / NH;
  for (int i = 0; i < n; i += KEYS) {
    for (int j = i; next && j < std::min(i + KEYS, next->n); j++)
      fetch(next->k[j], D * sizeof(T));
    vf a[8] = {};
#if defined(__AVX512BF16__)
    if (has_dot<T>() && dot) {
      for (int d = 0; d < D; d += 32)
        for (int j = 0; j < KEYS; j++) {
          __m512bh key = (__m512bh)_mm512_loadu_si512((const void*)(k[i + j] + d));
          for (int h = 0; h < NH; h++) {
            __m512bh query = (__m512bh)_mm512_loadu_si512((const void*)(s.qh.data() + h * D + d));
            a[j * NH + h] = (vf)_mm512_dpbf16_ps((__m512)a[j * NH + h], query, key);
          }
        }
      sum8(a, score + i * NH);
      continue;
    }
#endif
    for (int d = 0; d < D; d += 2 * W) {
      vf low[KEYS], high[KEYS];
      for (int j = 0; j < KEYS; j++) load_pair(k[i + j] + d, low[j], high[j]);
      for (int h = 0; h < NH; h++) {
        vf q = load(s.q.data() + h * D + d);
        for (int j = 0; j < KEYS; j++) a[j * NH + h] += q * low[j];
        q = load(s.q.data() + h * D + d + W);
        for (int j = 0; j < KEYS; j++) a[j * NH + h] += q * high[j];
      }
    }
    sum8(a, score + i * NH);
  }
}

// acc += weight[i][h] * v_i over n tokens, UN pairs of vectors of each row at a time, fetching the
// same place of the rows of `ahead`
template <class T, int NH, int UN>
void add_values(const T* const* v, int n, const float* weight, const float* decay, int D, int d,
                const T* const* ahead, float* acc) {
  vf a[NH][2 * UN];
  for (int h = 0; h < NH; h++)
    for (int u = 0; u < 2 * UN; u++) a[h][u] = load(acc + h * D + d + u * W) * decay[h];
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

// Folds n tokens with logits `score` [n][NH] (padded to whole vectors with -inf) into the state.
// `count` (may be null) weighs each token in the denominator only: estimated clusters. The values of
// `ahead` (may be null; n of them) are fetched meanwhile.
template <class T, int NH>
void fold(Heads& s, const T* const* v, const float* count, int n, const T* const* ahead,
          float* score, int D) {
  int width = (n * NH + W - 1) / W * W;
  vf top = s.max;
  for (int i = 0; i < width; i += W) top = vmax(top, load(score + i));
  for (int h = 0; h < NH; h++) {
    float most = top[h];
    for (int j = h; j < W; j += NH) most = std::max(most, top[j]);
    for (int j = h; j < W; j += NH) top[j] = most;
  }
  vf decay = vexp(s.max - top);
  s.max = top;
  vf sum = s.sum * decay;
  for (int i = 0; i < width; i += W) {
    vf p = vexp(load(score + i) - top);
    store(score + i, p);
    sum += count ? p * load(count + i) : p;
  }
  s.sum = sum;
  float keep[NH];
  for (int h = 0; h < NH; h++) keep[h] = decay[h];
  constexpr int UN = 4 / NH;
  constexpr int LINE = 64 / sizeof(T);
  int d = 0;
  for (; d + UN * 2 * W <= D; d += UN * 2 * W)
    add_values<T, NH, UN>(v, n, score, keep, D, d, d % LINE ? nullptr : ahead, s.acc.data());
  for (; d < D; d += 2 * W)
    add_values<T, NH, 1>(v, n, score, keep, D, d, d % LINE ? nullptr : ahead, s.acc.data());
}

// Logits from dot products, in place; entries of tokens at and beyond n become -inf.
static inline void finish_scores(float* score, int n, int nh, float scale, float softcap) {
  int width = (n * nh + W - 1) / W * W;
  for (int i = 0; i < width; i += W) {
    vf x = load(score + i) * scale;
    if (softcap > 0) {
      vf e = vexp(x * (2.f / softcap));
      x = softcap - 2.f * softcap / (e + 1.f);
    }
    store(score + i, x);
  }
  for (int i = n * nh; i < width; i++) score[i] = -INFINITY;
}
