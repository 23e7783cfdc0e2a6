// Online softmax over tokens that lie anywhere, for up to four query heads of one KV head.
#pragma once
#include <cmath>
#include "lanes.h"

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

constexpr float LOWEST = -1e30f;  // "no token yet"

// Queries of some heads and the running softmax of each, in the order of L (see lanes.h).
struct Heads {
  int used = 0;            // lanes beyond repeat the first head
  std::vector<float> q;
  std::vector<float> acc;  // [head][D]
  vf max, sum;

  template <class L> void load(const float* query, int heads, int D) {
    used = heads;
    for (int h = 0; h < L::HEADS; h++) L::load(query + (h < used ? h : 0) * D, h, D, q);
  }
  template <class L> void clear(int D) {
    acc.assign(L::HEADS * D, 0.f);
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
template <class L> void unload(const Heads& s, Partial* out, int D) {
  std::vector<float> natural(D);
  for (int h = 0; h < s.used; h++) {
    float sum = L::sum(s.sum, h);
    if (sum == 0) continue;
    for (int i = 0; i < D; i++) natural[L::place(i)] = s.acc[h * D + i];
    merge(out[h], s.max[L::lane(h)], sum, natural.data(), D);
  }
}

// Folds n tokens with logits `score` (padded to whole vectors with -inf) into the state. `count`
// (may be null) weighs each token in the denominator only: estimated clusters. The values of `ahead`
// (may be null; as many as n) are fetched meanwhile. An odd n needs a readable v[n].
template <class L>
void fold(Heads& s, const typename L::Type* const* v, const float* count, int n,
          const typename L::Type* const* ahead, float* score, int D) {
  int width = L::width(n);
  vf top = s.max;
  for (int i = 0; i < width; i += W) top = vmax(top, load(score + i));
  top = L::most(top);
  vf decay = vexp(s.max - top);
  s.max = top;
  vf sum = s.sum * decay;
  for (int i = 0; i < width; i += W) {
    vf p = vexp(load(score + i) - top);
    L::keep(p, score + i);
    sum += count ? p * load(count + i) : p;
  }
  s.sum = sum;
  L::add(v, n, score, decay, D, ahead, s.acc.data());
}

// Logits from dot products.
static inline vf finished(vf x, float scale, float softcap) {
  x *= scale;
  if (softcap > 0) x = softcap - 2.f * softcap / (vexp(x * (2.f / softcap)) + 1.f);
  return x;
}

// The same in place; entries of tokens at and beyond n become -inf.
template <class L> void finish_scores(float* score, int n, float scale, float softcap) {
  int width = L::width(n);
  for (int i = 0; i < width; i += W) store(score + i, finished(load(score + i), scale, softcap));
  for (int i = n; L::at(i, 0) < width; i++)
    for (int h = 0; h < L::HEADS; h++) score[L::at(i, h)] = -INFINITY;
}
