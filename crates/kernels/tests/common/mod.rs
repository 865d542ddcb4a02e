//! What every device has to do: the tests of `products.rs`, natively, and of `web.rs`, in the browser.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use baton_kernels::{FrozenMatrix, Storage};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers as weights are: most of them small, none beyond ±0.12.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 0.06;
    (0..count).map(|_| draw()).collect()
}

pub(crate) fn tensor(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub(crate) async fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data_async().await.unwrap().try_into_vec().unwrap()
}

/// The largest difference, relative to the largest number that is right.
pub(crate) fn relative(found: &[f32], right: &[f32]) -> f32 {
    assert_eq!(found.len(), right.len());
    let largest = right.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let differences = found.iter().zip(right).map(|(a, b)| (a - b).abs());
    // Not `max`, which passes over a NaN.
    let worst = differences.fold(0.0, |worst: f32, x| if x <= worst { worst } else { x });
    worst / largest
}

/// A matrix, and what it holds as a plain tensor.
pub(crate) async fn matrix(
    storage: Storage,
    shape: [usize; 2],
    device: &Device,
) -> (FrozenMatrix, Tensor<2>) {
    let matrix = FrozenMatrix::from_f32(storage, numbers(shape[0] * shape[1], 1), shape, device).unwrap();
    let plain = tensor(matrix.to_f32().await.unwrap(), shape, device);
    (matrix, plain)
}

/// Both products of `n` rows, against burn's matmul with the unpacked matrix.
pub(crate) async fn check_products(storage: Storage, shape: [usize; 2], n: usize, device: &Device) {
    let [rows, columns] = shape;
    let (frozen, plain) = matrix(storage, shape, device).await;
    let what = format!("{} {rows} x {columns}, {n} rows", storage.name());

    let x = tensor(numbers(n * columns, 2), [n, columns], device);
    let found = frozen.apply(x.clone());
    assert_eq!(found.dims(), [n, rows], "{what}");
    let error = relative(&values(found).await, &values(x.matmul(plain.clone().transpose())).await);
    assert!(error < 1e-5, "{what}: {error:e}");

    let x = tensor(numbers(n * rows, 3), [n, rows], device);
    let found = frozen.apply_transposed(x.clone());
    assert_eq!(found.dims(), [n, columns], "{what}");
    let error = relative(&values(found).await, &values(x.matmul(plain)).await);
    assert!(error < 1e-5, "{what}, transposed: {error:e}");
}

/// The gradient of x through both products, one after the other, against burn's own.
pub(crate) async fn check_gradients(storage: Storage, shape: [usize; 2], n: usize, device: &Device) {
    let [rows, columns] = shape;
    let (frozen, plain) = matrix(storage, shape, device).await;
    let leaf = || tensor(numbers(n * columns, 4), [n, columns], device).autodiff().require_grad();
    let weights = tensor(numbers(n * columns, 5), [n, columns], device);

    let x = leaf();
    let y = frozen.apply_transposed(frozen.apply(x.clone()).powi_scalar(2));
    let found = x.grad(&(y * weights.clone()).sum().backward()).unwrap();
    let x = leaf();
    let y = x.clone().matmul(plain.clone().transpose()).powi_scalar(2).matmul(plain);
    let right = x.grad(&(y * weights).sum().backward()).unwrap();
    let error = relative(&values(found).await, &values(right).await);
    assert!(error < 1e-5, "{} {rows} x {columns}: {error:e}", storage.name());
}

/// Rows by their ids, repeated and out of order, are the matrix's rows bit for bit.
pub(crate) async fn check_rows(storage: Storage, shape: [usize; 2], device: &Device) {
    let [rows, columns] = shape;
    let (frozen, plain) = matrix(storage, shape, device).await;
    let plain = values(plain).await;
    let row = |row: usize| plain[row * columns..][..columns].to_vec();

    let ids = [rows - 1, 0, rows / 2, 0];
    let data = TensorData::from(ids.map(|id| id as i32));
    let found = values(frozen.select(Tensor::<1, Int>::from_data(data, device))).await;
    assert_eq!(found, ids.map(row).concat(), "{}", storage.name());

    let part = frozen.rows(1..rows - 1);
    assert_eq!((part.dims(), part.storage()), ([rows - 2, columns], storage));
    assert_eq!(part.to_f32().await.unwrap(), plain[columns..(rows - 1) * columns], "{}", storage.name());
    let x = tensor(numbers(7 * columns, 6), [7, columns], device);
    let (of_part, of_all) = (values(part.apply(x.clone())).await, frozen.apply(x).slice([0..7, 1..rows - 1]));
    assert!(relative(&of_part, &values(of_all).await) < 1e-6);
}
