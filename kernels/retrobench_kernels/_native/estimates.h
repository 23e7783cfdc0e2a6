// Estimates of which all weights are known before any value is read: where a mean value stands for
// the clusters that no list names, or values are codes. Each value is read once.
#pragma once
#include "arguments.h"
#include "codes.h"
#include "softmax.h"

// Of one KV head: the clusters whose values are read, with their tokens and each head's weights
// [head][cluster]. `max` and `sum` are each head's part of the softmax, `rest` its weight of the
// sum of all values.
struct Weighed {
  std::vector<int32_t> cluster;
  std::vector<float> tokens, weight, max, sum, rest;
  const float* of(int h) const { return weight.data() + h * tokens.size(); }
};

// use(c, vector) for the logits of clusters of which `left` says that they have tokens, else -inf.
template <class F>
void each_left(const float* logit, const float* left, long C, const F& use) {
  for (long c = 0; c < C; c += W) {
    vf x = splat(-INFINITY);
    if (c + W <= C) x = load(logit + c);
    else for (long i = c; i < C; i++) x[i - c] = logit[i];
    use(c, load(left + c) > 0.f ? x : splat(-INFINITY));
  }
}

static float sum_of(vf x) {
  float sum = 0;
  for (int j = 0; j < W; j++) sum += x[j];
  return sum;
}

// Estimated clusters, and with `total` all others through what it leaves: the named ones are taken
// from it, so each of them has a negative weight beside its own.
static void weigh(const Wave& w, long head, const int32_t* size, Weighed& to) {
  thread_local std::vector<float> left;  // tokens of clusters that no list names
  const long C = w.C, others = w.total ? C : 0;
  int32_t all = 0;
  left.assign(C + W, 0.f);
  float* n_left = left.data();
  for (long c = 0; c < others; c++) {
    int32_t n = size[c] > 0 ? size[c] : 0;
    n_left[c] = n;
    all += n;
  }
  int32_t tokens = all;  // a variable of its own: the loop above keeps its sum in vectors
  to.cluster.clear();
  auto name = [&](const int32_t* list, long length) {
    for (long i = 0; i < length; i++) {
      long c = list[i];
      if (c < 0 || size[c] <= 0 || (w.total && left[c] == 0)) continue;
      to.cluster.push_back(c);
      tokens -= size[c];
      left[c] = 0;
    }
    return (long)to.cluster.size();
  };
  long estimated = name(w.estimated + head * w.E, w.E), named = estimated;
  if (w.total) name(w.retrieved + head * w.R, w.R), named = name(w.apart + head * w.A, w.A);
  long width = (named + W - 1) / W * W;
  to.tokens.assign(width, 0.f);
  for (long i = 0; i < named; i++) to.tokens[i] = size[to.cluster[i]];
  to.weight.assign(width * w.group, -INFINITY);
  for (auto* x : {&to.max, &to.sum, &to.rest}) x->resize(w.group);
  for (int h = 0; h < w.group; h++) {
    const float* logit = w.logit + (head * w.group + h) * C;
    float* own = to.weight.data() + h * width;
    for (long i = 0; i < estimated; i++) own[i] = logit[to.cluster[i]];
    vf top = splat(LOWEST), sum{}, beyond{};
    for (long i = 0; i < estimated; i += W) top = vmax(top, load(own + i));
    each_left(logit, n_left, others, [&](long, vf x) { top = vmax(top, x); });
    float most = LOWEST;
    for (int j = 0; j < W; j++) most = std::max(most, top[j]);
    each_left(logit, n_left, others, [&](long c, vf x) {
      beyond += vexp(x - most) * load(n_left + c);
    });
    to.max[h] = most;
    to.rest[h] = tokens > 0 ? sum_of(beyond) / tokens : 0;
    for (long i = 0; i < width; i += W) {
      vf weight = vexp(load(own + i) - most), n = load(&to.tokens[i]);
      sum += weight * n;
      weight -= to.rest[h];
      store(own + i, w.value_scale ? weight * n : weight);  // of a mean value, or of a sum
    }
    to.sum[h] = sum_of(sum) + sum_of(beyond);
  }
}

// acc[h] += weight * value of clusters [low, high), for NH heads from `first` on
template <int NH, class V>
void add_weighed(const V& values, const Weighed& w, long low, long high, int first, float* acc) {
  constexpr int AT_ONCE = 8;
  const float* weight[NH];
  for (int h = 0; h < NH; h++) weight[h] = w.of(first + h);
  for (long from = low; from < high; from += AT_ONCE) {
    long to = std::min(from + AT_ONCE, high);
    for (long i = to; i < std::min(to + AT_ONCE, high); i++) values.prepare(w.cluster[i]);
    for (int d = 0; d < values.D; d += BLOCK_DIMS) {
      vf a[NH][PARTS], x[PARTS];
      for (int h = 0; h < NH; h++)
        for (int j = 0; j < PARTS; j++) a[h][j] = load(acc + h * values.D + d + j * W);
      for (long i = from; i < to; i++) {
        values.read(w.cluster[i], d, x);
        for (int h = 0; h < NH; h++)
          for (int j = 0; j < PARTS; j++) a[h][j] += x[j] * weight[h][i];
      }
      for (int h = 0; h < NH; h++)
        for (int j = 0; j < PARTS; j++) store(acc + h * values.D + d + j * W, a[h][j]);
    }
  }
}

// Split `s` of the clusters into out[0..group); the first split has what is no cluster's.
template <class V>
void estimate_weighed(const V& values, const Weighed& w, const float* mean, const float* total,
                      int group, long s, long splits, Partial* out) {
  int D = values.D;
  long n = w.cluster.size(), low = n * s / splits, high = n * (s + 1) / splits;
  std::vector<float> acc(MAX_HEADS * D), natural(D);
  for (int first = 0; first < group; first += MAX_HEADS) {
    int used = std::min(MAX_HEADS, group - first);
    std::fill(acc.begin(), acc.end(), 0.f);
    auto add = used == 1 ? add_weighed<1, V> : used == 2 ? add_weighed<2, V>
             : used == 3 ? add_weighed<3, V> : add_weighed<4, V>;
    add(values, w, low, high, first, acc.data());
    for (int h = 0; h < used; h++) {
      float shared = 0, rest = s == 0 && total ? w.rest[first + h] : 0;
      for (long i = low; mean && i < high; i++) shared += w.of(first + h)[i];
      for (int d = 0; d < D; d++) natural[V::place(d)] = acc[h * D + d];
      for (int d = 0; mean && d < D; d++) natural[d] += shared * mean[d];
      for (int d = 0; rest != 0 && d < D; d++) natural[d] += rest * total[d];
      if (w.sum[first + h] > 0)
        merge(out[first + h], w.max[first + h], s == 0 ? w.sum[first + h] : 0, natural.data(), D);
    }
  }
}
