//! Grouped-query attention, with or without keys and values of positions before.

use burn::tensor::{Tensor, activation};

use crate::positions::View;

/// Keys and values, each `[batch · kv heads, time, head_dim]`.
pub(crate) type KeysValues = [Tensor<3>; 2];

/// Attention of queries in groups that share a key head (Ainslie et al., 2023, arXiv:2305.13245) over the positions so far.
///
/// q: [batch, time, heads, head_dim], k and v: [batch, time, kv heads, head_dim] -> [batch · time, heads · head_dim]
pub(crate) fn attention(
    [q, k, v]: [Tensor<4>; 3],
    scale: f64,
    view: &View,
    cached: Option<&mut Option<KeysValues>>,
) -> Tensor<2> {
    let [batch, time, heads, width] = q.dims();
    let kv_heads = k.dims()[2];
    let group = heads / kv_heads;
    // The query heads that share a key head follow one another: as rows of one matrix they need no copies of the keys.
    let rows = |x: Tensor<4>, rows: usize| {
        let x = x.swap_dims(1, 2);
        x.reshape([batch * kv_heads, rows, width])
    };
    let q = rows(q, group * time).mul_scalar(scale);
    let [k, v] = match cached {
        None => [rows(k, time), rows(v, time)],
        Some(cached) => {
            let new = [rows(k, time), rows(v, time)];
            let all = match cached.take() {
                None => new,
                Some([old_k, old_v]) => {
                    let [k, v] = new;
                    [Tensor::cat(vec![old_k, k], 1), Tensor::cat(vec![old_v, v], 1)]
                }
            };
            cached.insert(all).clone()
        }
    };
    let all = k.dims()[1];
    let scores = q.matmul(k.transpose()); // [batch · kv heads, group · time, all]
    let scores = view.mask(scores.reshape([batch * kv_heads, group, time, all]));
    let weights = activation::softmax(scores, 3);
    let weights: Tensor<3> = weights.reshape([batch * kv_heads, group * time, all]);
    let mixed: Tensor<4> = weights.matmul(v).reshape([batch, heads, time, width]);
    mixed.swap_dims(1, 2).reshape([batch * time, heads * width])
}
