// Split-KV decode attention: dense, and RetroInfer's three zones. All strides count elements.
#include "arguments.h"
#include "attention.h"

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
        if (part.sum > 0) merge(total, part.max, part.sum, part.acc, D);
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

// The estimated clusters of split s; with the first split, those that no list names.
template <class V>
void estimate_part(const Wave& w, long b, long g, long s, const int32_t* size,
                   const int32_t* chosen, Partial* part) {
  long head = b * w.G + g, low = w.E * s / w.splits, high = w.E * (s + 1) / w.splits;
  std::vector<float> buffer(w.value_scale ? 2 * BLOCK * w.D : 0);
  Codes codes{};
  if (w.value_scale)
    codes = Codes{(const int8_t*)w.value_sum, (const f16*)w.value_scale, w.value_mean, w.bits}
                .head(head, w.C, w.D);
  Sums<V> sums{w.value_scale ? nullptr : at<V>(w.value_sum, w.stride + 12, b, g),
               w.value_scale ? &codes : nullptr, size, &buffer};
  const int32_t* estimated = w.estimated + head * w.E;
  const float* logit = w.logit + head * w.group * w.C;
  Form f{(int)w.D, w.scale, w.softcap, w.dot != 0};
  estimate_group(estimated + low, high - low, logit, w.C, sums, w.group, f, part);
  if (!w.total || s > 0) return;
  const int32_t* const lists[] = {chosen, estimated, w.apart + head * w.A};
  const long lengths[] = {w.R, w.E, w.A};
  estimate_rest(lists, lengths, logit, w.C, sums, w.total + head * w.D, w.group, w.D, part);
}

template <class T> void wave(const Wave& w) {
  Form f{(int)w.D, w.scale, w.softcap, w.dot != 0};
  int group = w.group;
  long numbers = w.B * w.G * group * w.D;
  Query q(w.q, numbers, w.dot != 0);
  std::vector<float> wide(w.dot ? numbers : 0);
  float* out = w.dot ? wide.data() : (float*)w.out;
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
      estimate_part<V>(w, b, g, s, size, chosen, part);
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
