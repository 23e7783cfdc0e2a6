// Feeds spans of tokens to the softmax in blocks, one block ahead for prefetching.
#pragma once
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

// Estimated clusters: logits are known, value sums are added, sizes weigh the denominator.
// `logit` is [group][C]; T is the type of the value sums. Two blocks, as in Attention.
template <class L, class T>
void estimate(const int32_t* cluster, long n, const float* logit, long C, const T* sums,
              const int32_t* size, Heads& s, int D) {
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
      to.count[L::at(to.n, h)] = size[c];
    }
    to.v[to.n] = sums + c * D;
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
    if (cluster[i] < 0 || size[cluster[i]] <= 0) continue;
    add(cluster[i]);
    if (block[filling].n == BLOCK) turn();
  }
  turn();
  turn();
}

template <class T>
void estimate_group(const int32_t* cluster, long n, const float* logit, long C, const T* sums,
                    const int32_t* size, int group, const Form& f, Partial* out) {
  for (int h = 0; h < group; h += MAX_HEADS) {
    Heads s;
    s.used = std::min(MAX_HEADS, group - h);
    with_lanes<T>(s.used, f.dot, [&](auto lanes) {
      using L = decltype(lanes);
      s.clear<L>(f.D);
      estimate<L>(cluster, n, logit + h * C, C, sums, size, s, f.D);
      unload<L>(s, out + h, f.D);
    });
  }
}
