//! The devices to run on, and the way of a tensor's values in and out of them.

use burn::tensor::{Device, Int, Tensor, TensorData, Transaction};

use crate::ModelError;

/// The CPU, natively and in wasm.
pub fn cpu() -> Device {
    Device::flex()
}

/// The default WebGPU adapter, with the limits that it offers (not WebGPU's far lower defaults).
///
/// Initialised once; later calls give the same device.
///
/// # Errors
///
/// In words, when there is no adapter or it refuses.
#[cfg(feature = "webgpu")]
pub async fn webgpu() -> Result<Device, String> {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device.clone());
    }
    let device = Device::wgpu_options().init_async().await.map_err(|error| error.to_string())?;
    Ok(DEVICE.get_or_init(|| device).clone())
}

/// The values of a boundary in row-major order, and its shape `[batch, time, hidden]`.
///
/// # Errors
///
/// When the device fails to give them back.
pub async fn boundary_to_f32(t: Tensor<3>) -> Result<(Vec<f32>, [usize; 3]), ModelError> {
    let shape = t.dims();
    Ok((to_f32(t).await?, shape))
}

/// A boundary `[batch, time, hidden]` from its values in row-major order.
///
/// # Panics
///
/// When `values` is not as long as `shape` says: what comes from outside is checked before.
pub fn f32_to_boundary(values: Vec<f32>, shape: [usize; 3], device: &Device) -> Tensor<3> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The values of a tensor.
pub(crate) async fn to_f32<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, ModelError> {
    values(tensor.into_data_async().await.map_err(readback)?)
}

/// The values of many tensors by one readback: on a GPU each one costs a round trip.
pub(crate) async fn all_to_f32(
    tensors: impl IntoIterator<Item = Tensor<2>>,
) -> Result<Vec<Vec<f32>>, ModelError> {
    let transaction = tensors.into_iter().fold(Transaction::default(), Transaction::register);
    let data = transaction.execute_async().await.map_err(readback)?;
    data.into_iter().map(values).collect()
}

/// A matrix from its values in row-major order. The caller has checked the length.
pub(crate) fn matrix(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Indices in the integer type of the device (WebGPU has no i64: burn converts to the device's own).
pub(crate) fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

fn values(data: TensorData) -> Result<Vec<f32>, ModelError> {
    data.try_into_vec().map_err(readback)
}

fn readback(error: impl std::fmt::Debug) -> ModelError {
    ModelError::Readback(format!("{error:?}"))
}
