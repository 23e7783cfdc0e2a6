// Neighbour graphs over keys by inner product: construction (RoarGraph), beam search, insertion.
// Everything is ordered by (inner product, lower number first), so results do not depend on threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>
#include "simd.h"

namespace {

constexpr int PAIR = 2 * W;

struct Scored { float ip; int32_t id; };
inline bool better(const Scored& a, const Scored& b) {
  return a.ip > b.ip || (a.ip == b.ip && a.id < b.id);
}

inline float number(float x) { return x; }
inline float number(bf16 x) { return widen(x); }

// Keys of any head dim. A query is laid out once as `load_pair` gives the keys' numbers.
template <class T> struct Keys {
  const T* k;
  int D;
  int padded() const { return (D + PAIR - 1) / PAIR * PAIR; }
  const T* row(long i) const { return k + i * D; }
  float dot(const float* q, const T* x) const {
    vf sum[2] = {}, a, b;
    int d = 0;
    for (; d + PAIR <= D; d += PAIR) {
      load_pair(x + d, a, b);
      sum[0] += a * load(q + d);
      sum[1] += b * load(q + d + W);
    }
    if (d < D) {
      T rest[PAIR] = {};
      std::copy(x + d, x + D, rest);
      load_pair(rest, a, b);
      sum[0] += a * load(q + d);
      sum[1] += b * load(q + d + W);
    }
    sum[0] += sum[1];
    float total = 0;
    for (int j = 0; j < W; j++) total += sum[0][j];
    return total;
  }
  template <class Q> void lay_out(const Q* q, float* out) const {
    for (int i = 0; i < padded(); i++) out[i] = place<T>(i) < D ? number(q[place<T>(i)]) : 0.f;
  }
};

struct Span { const int32_t *first, *last; };

// Neighbours of every node, as rows of `width` numbers, -1 padded at the end.
struct Table {
  int32_t* link;
  long width;
  int32_t* row(long i) const { return link + i * width; }
  long size(long i) const { return std::find(row(i), row(i) + width, -1) - row(i); }
  Span of(long i) const { return {row(i), row(i) + size(i)}; }
  void set(long i, const std::vector<int32_t>& list) const {
    std::copy(list.begin(), list.end(), row(i));
    std::fill(row(i) + list.size(), row(i) + width, -1);
  }
};

// The same while a graph is built.
struct Lists {
  std::vector<std::vector<int32_t>> list;
  explicit Lists(long n) : list(n) {}
  std::vector<int32_t>& operator[](long i) { return list[i]; }
  Span of(long i) const { return {list[i].data(), list[i].data() + list[i].size()}; }
};

inline bool has(const std::vector<int32_t>& list, int32_t id) {
  return std::find(list.begin(), list.end(), id) != list.end();
}

struct Visited {
  std::vector<uint32_t> mark;
  uint32_t now = 0;
  void start(long n) {
    if ((long)mark.size() < n) mark.resize(n, 0);
    if (++now == 0) std::fill(mark.begin(), mark.end(), 0), now = 1;
  }
  bool first(long i) { return mark[i] == now ? false : (mark[i] = now, true); }
};

struct Cost { int64_t scanned = 0, list_entries = 0; };

// Best-first search: expands the `width` best nodes and remembers the `room` best, in `beam`.
// Node `left_out` is not found by its neighbours.
template <class T> class Search {
 public:
  std::vector<Scored> beam, expanded;

  template <class L>
  Cost run(const Keys<T>& keys, const L& links, const float* q, long n, Span entries, long width,
           long room, int32_t left_out = -1) {
    Cost cost;
    visited_.start(n);
    beam.clear();
    done_.clear();
    expanded.clear();
    if (!n) return cost;
    look(keys, entries, q, room, cost);
    if (left_out >= 0) visited_.first(left_out);
    for (size_t at = 0; at < std::min<size_t>(beam.size(), width);) {
      if (done_[at]) { at++; continue; }
      done_[at] = 1;
      expanded.push_back(beam[at]);
      Span list = links.of(beam[at].id);
      cost.list_entries += list.last - list.first;
      at = std::min(at, look(keys, list, q, room, cost));
    }
    return cost;
  }

 private:
  // products with all that were not seen yet; the best place in the beam that one of them took
  size_t look(const Keys<T>& keys, Span list, const float* q, long room, Cost& cost) {
    fresh_.clear();
    for (const int32_t* id = list.first; id < list.last; id++) {
      if (*id < 0 || !visited_.first(*id)) continue;
      __builtin_prefetch(keys.row(*id));
      fresh_.push_back(*id);
    }
    cost.scanned += fresh_.size();
    size_t at = room;
    for (int32_t id : fresh_) at = std::min(at, add({keys.dot(q, keys.row(id)), id}, room));
    return at;
  }

  // place in the beam, or its size if the node is not good enough
  size_t add(Scored x, long room) {
    if ((long)beam.size() == room && !better(x, beam.back())) return beam.size();
    size_t at = std::lower_bound(beam.begin(), beam.end(), x, better) - beam.begin();
    beam.insert(beam.begin() + at, x);
    done_.insert(done_.begin() + at, 0);
    if ((long)beam.size() > room) beam.pop_back(), done_.pop_back();
    return at;
  }
  Visited visited_;
  std::vector<uint8_t> done_;
  std::vector<int32_t> fresh_;
};

// Occlusion: keep a candidate unless it is closer to one already kept than to the source.
template <class T> class Pruner {
 public:
  Pruner(const Keys<T>& keys) : keys_(keys), row_(keys.padded()) {}

  // others by their product with a node, best first
  std::vector<Scored>& scored(int32_t node, const std::vector<int32_t>& others) {
    keys_.lay_out(keys_.row(node), row_.data());
    found_.clear();
    for (int32_t id : others) found_.push_back({keys_.dot(row_.data(), keys_.row(id)), id});
    std::sort(found_.begin(), found_.end(), better);
    return found_;
  }

  // `fill` takes the best hidden ones up to the limit
  std::vector<int32_t> run(const Scored* first, const Scored* last, long limit, bool fill) {
    std::vector<int32_t> kept, hidden;
    for (const Scored* c = first; c < last && (long)kept.size() < limit; c++) {
      keys_.lay_out(keys_.row(c->id), row_.data());
      bool behind = false;
      for (size_t r = 0; r < kept.size() && !behind; r++)
        behind = keys_.dot(row_.data(), keys_.row(kept[r])) > c->ip;
      (behind ? hidden : kept).push_back(c->id);
    }
    for (size_t i = 0; fill && i < hidden.size() && (long)kept.size() < limit; i++)
      kept.push_back(hidden[i]);
    return kept;
  }

  std::vector<int32_t> run(int32_t node, const std::vector<int32_t>& others, long limit,
                           bool fill) {
    auto& found = scored(node, others);
    return run(found.data(), found.data() + found.size(), limit, fill);
  }

 private:
  Keys<T> keys_;
  std::vector<float> row_;
  std::vector<Scored> found_;
};

// One graph. Nodes and training queries take their turn in order, as one thread would.
class Builder {
 public:
  Builder(const float* k, long n, int D, int32_t entry, long degree, long beam)
      : keys_{k, D}, pruner_(keys_), row_(keys_.padded()), n_(n), entry_(entry), degree_(degree), beam_(beam) {}

  void run(const int32_t* near, long T, long N, int32_t* link) {
    Lists projection(n_);
    for (long t = 0; t < T; t++) project(near + t * N, N, projection);
    for (long i = 0; i < n_; i++) add_reverse(projection, i, degree_, true);
    Lists supply = projection;
    for (long i = 0; i < n_; i++) connect(i, projection[i], supply);
    Table table{link, 2 * degree_};
    for (long i = 0; i < n_; i++) {
      if ((long)supply[i].size() > degree_)
        supply[i] = pruned_new(i, projection[i], pruner_.scored(i, supply[i]));
      std::vector<int32_t> both = projection[i];
      for (int32_t id : supply[i])
        if (!has(projection[i], id)) both.push_back(id);
      table.set(i, both);
    }
  }

 private:
  // a training query's nearest key gets the others as neighbours
  void project(const int32_t* near, long N, Lists& links) {
    int32_t pivot = near[0];
    if (pivot < 0) return;
    others_.assign(near + 1, std::find(near + 1, near + N, -1));
    links[pivot] = pruner_.run(pivot, others_, degree_, true);
    add_reverse(links, pivot, degree_, true);
  }

  // search for node i, and link it with what was found
  void connect(long i, const std::vector<int32_t>& known, Lists& supply) {
    keys_.lay_out(keys_.row(i), row_.data());
    search_.run(keys_, supply, row_.data(), n_, {&entry_, &entry_ + 1}, beam_, beam_, i);
    auto& found = search_.expanded;
    found.erase(std::remove_if(found.begin(), found.end(), [&](auto& c) { return c.id == i; }),
                found.end());
    std::sort(found.begin(), found.end(), better);
    std::vector<int32_t> list = pruned_new(i, known, found);
    if (list.empty()) return;
    supply[i] = list;
    add_reverse(supply, i, 2 * degree_, false);
  }

  // without the best candidates as long as the node knows them already
  std::vector<int32_t> pruned_new(long i, const std::vector<int32_t>& known,
                                  const std::vector<Scored>& found) {
    const Scored *first = found.data(), *last = first + found.size();
    while (first < last && has(known, first->id)) first++;
    return pruner_.run(first, last, degree_, false);
  }

  // edges back to node i; a list that has no room is pruned
  void add_reverse(Lists& links, int32_t i, long room, bool fill) {
    for (size_t j = 0; j < links[i].size(); j++) {
      int32_t other = links[i][j];
      if (has(links[other], i)) continue;
      links[other].push_back(i);
      if ((long)links[other].size() > room)
        links[other] = pruner_.run(other, links[other], degree_, fill);
    }
  }

  Keys<float> keys_;
  Pruner<float> pruner_;
  Search<float> search_;
  std::vector<float> row_;
  std::vector<int32_t> others_;
  long n_;
  int32_t entry_;
  long degree_, beam_;
};

// Key number n joins a graph: its edges, and edges back to it.
template <class T>
void insert(const Keys<T>& keys, long n, const Table& links, int32_t entry, long beam) {
  Search<T> search;
  Pruner<T> pruner(keys);
  std::vector<float> row(keys.padded());
  keys.lay_out(keys.row(n), row.data());
  search.run(keys, links, row.data(), n, {&entry, &entry + 1}, beam, beam);
  auto& found = search.expanded;
  std::sort(found.begin(), found.end(), better);
  std::vector<int32_t> own =
      pruner.run(found.data(), found.data() + found.size(), links.width / 2, false);
  links.set(n, own);
  for (int32_t other : own) {
    Span list = links.of(other);
    std::vector<int32_t> longer(list.first, list.last);
    longer.push_back(n);
    if ((long)longer.size() > links.width) longer = pruner.run(other, longer, links.width, true);
    links.set(other, longer);
  }
}

template <class F> void with_type(int dtype, const void* k, const F& f) {
  if (dtype == 0) f((const float*)k);
  else f((const bf16*)k);
}

}  // namespace

extern "C" {

// H graphs; each `per_keys` of them share keys.
void retrobench_graph_build(const float* k, const int32_t* near, const int32_t* entry,
                            int32_t* link, int64_t H, int64_t per_keys, int64_t n, int64_t T,
                            int64_t N, int32_t D, int64_t degree, int64_t beam, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (long h = 0; h < H; h++)
    Builder(k + h / per_keys * n * D, n, D, entry[h], degree, beam)
        .run(near + h * T * N, T, N, link + h * n * 2 * degree);
}

// One query per graph, from E entries (-1: none); heads of a group share keys. `stride`: of heads,
// in keys and in links.
void retrobench_graph_search(const float* q, const void* k, const int32_t* link,
                             const int32_t* entry, int32_t* token, float* ip, int64_t* scanned,
                             int64_t* entries, int64_t H, int64_t per_keys, int64_t per_graph,
                             int64_t n, int64_t width, int64_t E, int64_t beam, int64_t R, int32_t D,
                             const int64_t* stride, int32_t dtype, int32_t threads) {
  with_type(dtype, k, [&](auto* keys) {
    typedef std::decay_t<decltype(*keys)> T;
#pragma omp parallel num_threads(threads)
    {
      Search<std::remove_const_t<T>> search;
      std::vector<float> row;
#pragma omp for schedule(dynamic, 1)
      for (long h = 0; h < H; h++) {
        Keys<std::remove_const_t<T>> own{keys + h / per_keys * stride[0], D};
        Table links{const_cast<int32_t*>(link) + h / per_graph * stride[1], width};
        row.resize(own.padded());
        own.lay_out(q + h * D, row.data());
        Span starts{entry + h * E, entry + (h + 1) * E};
        Cost cost = search.run(own, links, row.data(), n, starts, beam, std::max(beam, R));
        scanned[h] = cost.scanned;
        entries[h] = cost.list_entries;
        for (long r = 0; r < R; r++) {
          bool there = r < (long)search.beam.size();
          token[h * R + r] = there ? search.beam[r].id : -1;
          ip[h * R + r] = there ? search.beam[r].ip : -INFINITY;
        }
      }
    }
  });
}

// Key number n joins every graph.
void retrobench_graph_insert(const void* k, int32_t* link, const int32_t* entry, int64_t H,
                             int64_t per_keys, int64_t n, int64_t width, int64_t beam, int32_t D,
                             const int64_t* stride, int32_t dtype, int32_t threads) {
  with_type(dtype, k, [&](auto* keys) {
    typedef std::remove_const_t<std::decay_t<decltype(*keys)>> T;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long h = 0; h < H; h++)
      insert(Keys<T>{keys + h / per_keys * stride[0], D}, n, Table{link + h * stride[1], width},
             entry[h], beam);
  });
}
}
