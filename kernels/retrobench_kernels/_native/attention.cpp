// Split-KV decode attention: dense, and RetroInfer's three zones. All strides count elements.
#include "arguments.h"
#include "attention.h"
#include "estimates.h"

namespace {

// Runs task(row, KV head, split, partials) for all, in parallel, and merges the splits of a head.
template <class F>
void split_heads(long B, long G, int group, int D, int splits, int threads, float* out, float* lse,
                 const F& task) {
  long tasks = B * G * splits;
  std::vector<float> acc(tasks * group * D, 0.f);
  std::vector<Partial> partial(tasks * group);
  for (long i = 0; i < tasks * group; i++) partial[i] = {LOWEST, 0.f, acc.data() + i * D};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < tasks; i++) {
      long head = i / splits;
      task(head / G, head % G, i % splits, partial.data() + i * group);
    }
#pragma omp for schedule(static)
    for (long i = 0; i < B * G * group; i++) {
      long head = i / group;
      Partial& total = partial[head * splits * group + i % group];
      for (int s = 1; s < splits; s++) {
        const Partial& part = partial[(head * splits + s) * group + i % group];
        if (part.max > LOWEST) merge(total, part.max, part.sum, part.acc, D);
      }
      for (int d = 0; d < D; d++) out[i * D + d] = total.sum > 0 ? total.acc[d] / total.sum : 0.f;
      lse[i] = total.sum > 0 ? total.max + std::log(total.sum) : -INFINITY;
    }
  }
}

template <class T>
void dense(const float* q, const T* k, const T* v, const int32_t* start, const int32_t* end,
           float* out, float* lse, long B, long G, int group, long S, const Form& f,
           const int64_t* stride, int splits, int threads) {
  split_heads(B, G, group, f.D, splits, threads, out, lse,
              [&](long b, long g, long s, Partial* part) {
    long from = start ? start[b] : 0, to = end ? std::min<long>(end[b], S) : S;
    long n = std::max(0L, to - from), low = from + n * s / splits, high = from + n * (s + 1) / splits;
    Attention<T> attention(q + (b * G + g) * group * f.D, group, f);
    attention.span(k + b * stride[0] + g * stride[1] + low * f.D,
                   v + b * stride[2] + g * stride[3] + low * f.D, high - low);
    attention.finish(part);
  });
}

template <class T> const T* at(const void* base, const int64_t* stride, long b, long g) {
  return (const T*)base + b * stride[0] + g * stride[1];
}

// the tokens of one cluster, page by page where a cache may hold them
template <class T>
void feed(Attention<T>& attention, const Wave& w, long b, long g, long cluster, long first,
          long size, const T* k, const T* v) {
  if (!w.slot) return attention.span(k + first * w.D, v + first * w.D, size);
  const T *kc = at<T>(w.k_cache, w.stride + 8, b, g), *vc = at<T>(w.v_cache, w.stride + 10, b, g);
  const int32_t* slot = at<int32_t>(w.slot, w.stride + 20, b, g);
  long page = w.page ? at<int32_t>(w.page, w.stride + 18, b, g)[cluster] : first / w.page_tokens;
  for (long done = 0; done < size; done += w.page_tokens, page++) {
    long count = std::min(size - done, (long)w.page_tokens);
    long from = (first + done) * w.D, place = slot[page] * w.page_tokens * w.D;
    if (slot[page] >= 0) attention.span(kc + place, vc + place, count);
    else attention.span(k + from, v + from, count);
  }
}

// The estimated clusters of split s.
template <class V>
void estimate_part(const Wave& w, long b, long g, long s, const int32_t* size, const Weighed* weighed,
                   Partial* part) {
  long head = b * w.G + g, low = w.E * s / w.splits, high = w.E * (s + 1) / w.splits;
  auto add = [&](auto values, const float* mean) {
    const float* total = w.total ? w.total + head * w.D : nullptr;
    estimate_weighed(values, weighed[head], mean, total, w.group, s, w.splits, part);
  };
  if (w.value_scale) {
    Codes all{(const int8_t*)w.value_sum, (const f16*)w.value_scale, w.value_mean, w.bits};
    Codes own = all.head(head, w.C, w.D);
    if (w.bits == 4) return add(Decoded<4>{own, (int)w.D}, own.mean);
    return add(Decoded<8>{own, (int)w.D}, own.mean);
  }
  const V* sums = at<V>(w.value_sum, w.stride + 12, b, g);
  if (w.total) return add(Rows<V>{sums, (int)w.D}, nullptr);
  Form f{(int)w.D, w.scale, w.softcap, w.dot != 0};
  estimate_group(w.estimated + head * w.E + low, high - low, w.logit + head * w.group * w.C, w.C,
                 sums, size, w.group, f, part);
}

template <class T> void wave(const Wave& w) {
  Form f{(int)w.D, w.scale, w.softcap, w.dot != 0};
  int group = w.group;
  long numbers = w.B * w.G * group * w.D;
  Query q(w.q, numbers, w.dot != 0);
  std::vector<float> wide(w.dot ? numbers : 0);
  float* out = w.dot ? wide.data() : (float*)w.out;
  thread_local std::vector<Weighed> kept;
  std::vector<Weighed>& weighed = kept;  // of this thread, for all
  if (w.value_sum && (w.total || w.value_scale)) {
    weighed.resize(std::max<size_t>(weighed.size(), w.B * w.G));
#pragma omp parallel for num_threads(w.threads) schedule(dynamic, 1)
    for (long head = 0; head < w.B * w.G; head++)
      weigh(w, head, at<int32_t>(w.size, w.stride + 16, head / w.G, head % w.G), weighed[head]);
  }
  split_heads(w.B, w.G, group, f.D, w.splits, w.threads, out, w.lse,
              [&](long b, long g, long s, Partial* part) {
    auto cut = [&](long n, long i) { return n * i / w.splits; };
    const int32_t *first = at<int32_t>(w.first, w.stride + 14, b, g),
                  *size = at<int32_t>(w.size, w.stride + 16, b, g);
    Attention<T> attention(q + (b * w.G + g) * group * f.D, group, f);
    long low = cut(w.steady[b], s), high = cut(w.steady[b], s + 1);
    attention.span(at<T>(w.k_steady, w.stride, b, g) + low * f.D,
                   at<T>(w.v_steady, w.stride + 2, b, g) + low * f.D, high - low);
    const T *k = at<T>(w.k_pool, w.stride + 4, b, g), *v = at<T>(w.v_pool, w.stride + 6, b, g);
    const int32_t* chosen = w.retrieved + (b * w.G + g) * w.R;
    for (long i = cut(w.R, s); i < cut(w.R, s + 1); i++)
      if (chosen[i] >= 0) feed(attention, w, b, g, chosen[i], first[chosen[i]], size[chosen[i]], k, v);
    attention.finish(part);
    if (!w.value_sum) return;  // the list may be empty and the rest estimated
    auto estimates = [&](auto type) {
      using V = decltype(type);
      estimate_part<V>(w, b, g, s, size, weighed.data(), part);
    };
    if (w.sum_dtype == 0 || w.value_scale) estimates(float{});
    else estimates(T{});
  });
  for (long i = 0; w.dot && i < numbers; i++) ((bf16*)w.out)[i] = narrow(out[i]);
}

}  // namespace

extern "C" {

void retrobench_dense(const float* q, const void* k, const void* v, const int32_t* start,
                      const int32_t* end, float* out, float* lse, int64_t B, int64_t G,
                      int32_t group, int64_t S, int32_t D, float scale, float softcap,
                      const int64_t* stride, int32_t dtype, int32_t dot, int32_t splits,
                      int32_t threads) {
  Form f{D, scale, softcap, dot != 0};
  auto run = [&](auto type) {
    using T = decltype(type);
    dense(q, (const T*)k, (const T*)v, start, end, out, lse, B, G, group, S, f, stride, splits,
          threads);
  };
  if (dtype == 0) run(float{});
  else if (dtype == 1) run(bf16{});
  else run(f16{});
}

void retrobench_wave(const Wave* w) {
  if (w->dtype == 0) wave<float>(*w);
  else if (w->dtype == 1) wave<bf16>(*w);
  else wave<f16>(*w);
}
}
