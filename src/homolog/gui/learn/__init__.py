"""The tabs Pretrain and Fine-tune: forms, estimate, start."""
