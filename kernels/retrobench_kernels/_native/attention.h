// Feeds spans of tokens to the softmax in blocks, one block ahead for prefetching.
#pragma once
#include "codes.h"
#include "softmax.h"

struct Form { int D; float scale, softcap; bool dot; };

template <class L, class T>
void attend_block(Heads& s, Tokens<T>& block, const Tokens<T>* next, const Form& f) {
  alignas(64) float score[SCORES];
  int padded = (block.n + 7) / 8 * 8;
  for (int i = block.n; i < padded; i++) {
    block.k[i] = block.k[block.n - 1];
    block.v[i] = block.v[block.n - 1];
  }
  L::scores(s.q, block.k, padded, f.D, next, score);
  finish_scores<L>(score, block.n, f.scale, f.softcap);
  bool whole = next && next->n == BLOCK;
  fold<L>(s, block.v, nullptr, block.n, whole ? next->v : nullptr, score, f.D);
}

// All query heads of one KV head, in chunks of at most four.
template <class T> class Attention {
 public:
  Attention(const float* query, int group, const Form& form) : form_(form) {
    for (int h = 0; h < group; h += MAX_HEADS) {
      int used = std::min(MAX_HEADS, group - h);
      heads_.emplace_back();
      with_lanes<T>(used, form.dot, [&](auto lanes) {
        using L = decltype(lanes);
        heads_.back().template load<L>(query + h * form.D, used, form.D);
        heads_.back().template clear<L>(form.D);
      });
    }
  }
  // `count` consecutive tokens
  void span(const T* k, const T* v, long count) {
    while (count > 0) {
      Tokens<T>& block = block_[filling_];
      int n = std::min<long>(count, BLOCK - block.n);
      const T **keys = block.k + block.n, **values = block.v + block.n;
      for (int i = 0; i < n; i++) keys[i] = k + i * form_.D, values[i] = v + i * form_.D;
      block.n += n;
      count -= n;
      k += n * form_.D;
      v += n * form_.D;
      if (block.n == BLOCK) turn();
    }
  }
  // Adds everything fed so far to out[0..group).
  void finish(Partial* out) {
    turn();
    turn();
    for (Heads& heads : heads_) {
      with_lanes<T>(heads.used, form_.dot,
                    [&](auto lanes) { unload<decltype(lanes)>(heads, out, form_.D); });
      out += MAX_HEADS;
    }
  }

 private:
  // computes the block before the one just filled, which is fetched meanwhile
  void turn() {
    Tokens<T>&next = block_[filling_], &now = block_[1 - filling_];
    for (int i = 0; now.n == 0 && i < next.n; i++) {  // nothing to compute meanwhile
      fetch(next.k[i], form_.D * sizeof(T));
      fetch(next.v[i], form_.D * sizeof(T));
    }
    for (size_t c = 0; now.n && c < heads_.size(); c++) {
      const Tokens<T>* ahead = c == 0 ? &next : nullptr;
      with_lanes<T>(heads_[c].used, form_.dot, [&](auto lanes) {
        attend_block<decltype(lanes)>(heads_[c], now, ahead, form_);
      });
    }
    now.n = 0;
    filling_ = 1 - filling_;
  }
  Form form_;
  std::vector<Heads> heads_;
  Tokens<T> block_[2];
  int filling_ = 0;
};

// Where the value sums of clusters are: as they are stored, or as codes of the means.
template <class T> struct Sums {
  const T* rows;
  const Codes* codes;  // null: `rows`
  const int32_t* size;
  std::vector<float>* buffer;  // for codes, [2 * BLOCK][D]

  const T* at(long c, int place, int D) const {
    if constexpr (std::is_same_v<T, float>)
      if (codes) {
        codes->unpack(c, D, size[c], buffer->data() + place * D);
        return buffer->data() + place * D;
      }
    return rows + c * D;
  }
  // Fetches the codes of a cluster that `at` is asked for soon.
  FETCHES void prepare(long c, int D) const {
    if (!codes || c < 0) return;
    fetch(codes->code + c * codes->row_bytes(D), codes->row_bytes(D));
    fetch(codes->scale + c * codes->blocks(D), codes->blocks(D) * sizeof(f16));
  }
  // Takes the sum of cluster c from `total`, which is in the lane order of T. Of codes, the mean of
  // all clusters is left for `take_means`.
  void take(long c, int D, float* total) const {
    auto less = [&](int d, vf x) { store(total + d, load(total + d) - x); };
    float n = size[c];
    if (codes) return codes->walk(c, D, [&](int low, int high, vf a, vf b) {
      less(low, a * n);
      less(high, b * n);
    });
    for (int d = 0; d < D; d += 2 * W) {
      vf low, high;
      load_pair(rows + c * D + d, low, high);
      less(d, low);
      less(d + W, high);
    }
  }
  void take_means(float tokens, int D, float* total) const {
    for (int d = 0; codes && d < D; d++) total[d] -= tokens * codes->mean[d];
  }
};

// Estimated clusters: logits are known, value sums are added, sizes weigh the denominator.
// `logit` is [group][C]; T is the type of the value sums. Two blocks, as in Attention.
template <class L, class T>
void estimate(const int32_t* cluster, long n, const float* logit, long C, const Sums<T>& sums,
              Heads& s, int D) {
  struct Block {
    alignas(64) float score[SCORES], count[SCORES];
    const T* v[BLOCK];
    int n = 0;
  } block[2];
  int filling = 0;
  auto add = [&](long c) {
    Block& to = block[filling];
    for (int h = 0; h < L::HEADS; h++) {
      to.score[L::at(to.n, h)] = logit[(h < s.used ? h : 0) * C + c];
      to.count[L::at(to.n, h)] = sums.size[c];
    }
    to.v[to.n] = sums.at(c, filling * BLOCK + to.n, D);
    to.n++;
  };
  auto turn = [&] {
    Block &next = block[filling], &now = block[1 - filling];
    for (int i = 0; now.n == 0 && i < next.n; i++) fetch(next.v[i], D * sizeof(T));
    if (next.n % 2) next.v[next.n] = next.v[next.n - 1];
    for (int j = next.n; L::at(j, 0) < L::width(next.n); j++)
      for (int h = 0; h < L::HEADS; h++)
        next.score[L::at(j, h)] = -INFINITY, next.count[L::at(j, h)] = 0;
    const T* const* ahead = next.n >= now.n ? next.v : nullptr;
    if (now.n) fold<L>(s, now.v, now.count, now.n, ahead, now.score, D);
    now.n = 0;
    filling = 1 - filling;
  };
  for (long i = 0; i < n; i++) {
    if (i + BLOCK < n) sums.prepare(cluster[i + BLOCK], D);
    if (cluster[i] < 0 || sums.size[cluster[i]] <= 0) continue;
    add(cluster[i]);
    if (block[filling].n == BLOCK) turn();
  }
  turn();
  turn();
}

template <class T>
void estimate_group(const int32_t* cluster, long n, const float* logit, long C,
                    const Sums<T>& sums, int group, const Form& f, Partial* out) {
  for (int h = 0; h < group; h += MAX_HEADS) {
    Heads s;
    s.used = std::min(MAX_HEADS, group - h);
    with_lanes<T>(s.used, f.dot, [&](auto lanes) {
      using L = decltype(lanes);
      s.clear<L>(f.D);
      estimate<L>(cluster, n, logit + h * C, C, sums, s, f.D);
      unload<L>(s, out + h, f.D);
    });
  }
}

// Clusters that no list names, through the mean of their values: what `total` leaves.
template <class T>
void estimate_rest(const int32_t* const lists[3], const long lengths[3], const float* logit, long C,
                   const Sums<T>& sums, const float* total, int group, int D, Partial* out) {
  std::vector<float> weight(C + W, 0.f), masked(C + W), mean(D);
  for (int i = 0; i < D; i++) mean[i] = total[place<T>(i)];
  long tokens = 0, taken = 0;
  for (long c = 0; c < C; c++) {
    int32_t size = std::max(sums.size[c], 0);
    weight[c] = size;
    tokens += size;
  }
  for (int k = 0; k < 3; k++)
    for (long i = 0; i < lengths[k]; i++) {
      long c = lists[k][i];
      if (c < 0 || weight[c] == 0) continue;
      sums.take(c, D, mean.data());
      weight[c] = 0;
      taken += sums.size[c];
    }
  tokens -= taken;
  if (tokens == 0) return;
  sums.take_means(taken, D, mean.data());
  std::vector<float> acc(D);
  for (int h = 0; h < group; h++) {
    const float* x = logit + h * C;
    float most = LOWEST, sum = 0;
    vf top = splat(LOWEST);
    long whole = C / W * W;
    for (long c = 0; c < C; c += W) {
      vf now = splat(-INFINITY);
      if (c < whole) now = load(x + c);
      else for (long i = c; i < C; i++) now[i - c] = x[i];
      now = load(&weight[c]) > 0.f ? now : splat(-INFINITY);
      store(&masked[c], now);
      top = vmax(top, now);
    }
    for (int j = 0; j < W; j++) most = std::max(most, top[j]);
    vf part = vf{};
    for (long c = 0; c < C; c += W) part += vexp(load(&masked[c]) - most) * load(&weight[c]);
    for (int j = 0; j < W; j++) sum += part[j];
    for (int d = 0; d < D; d++) acc[place<T>(d)] = sum * mean[d] / (float)tokens;
    merge(out[h], most, sum, acc.data(), D);
  }
}
