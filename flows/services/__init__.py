"""The servers that `posttrain up` starts on this machine: Prefect, MLflow, SeaweedFS and a worker."""
