"""What methods share: anatomy, frames, patches, augmentation."""
