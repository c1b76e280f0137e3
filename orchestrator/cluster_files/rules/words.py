"""Words that commands in cluster files consist of: commands, and variables that programs read."""

from __future__ import annotations

import re

#: Other commands that cluster files use.
COMMANDS = frozenset(
    re.findall(
        r"\S+",
        """
    apt apt-get awk bash break cat cd chmod chown cp curl cut date dirname docker done echo
    else esac exit export false fi find for git grep head hostname id if in install kill ln ls
    mkdir mount mv nvidia-smi printf pwd python3 read rm rsync scontrol sed seq set sh shopt
    shift sleep sort source sudo sync tail tar tee test then touch tr trap true ulimit umask
    uniq unset useradd groupadd usermod wait wc wget while xargs . [ [[ : { } psql pg_isready
    apk nproc getent kubectl sky sbatch srun module conda mamba uv npu-smi case do ip
    """,
    )
)
#: Variables that Ray, the stores, MLflow and this program read.
VARIABLES = frozenset(
    re.findall(
        r"\S+",
        """
    RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH RAY_ADDRESS RAY_API_SERVER_ADDRESS
    RAY_JOB_STOP_WAIT_TIME_S RAY_TMPDIR RAY_enable_autoscaler_v2 RAY_HEAD_IP
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_REGION AWS_DEFAULT_REGION
    AWS_ENDPOINT_URL AWS_PROFILE GOOGLE_APPLICATION_CREDENTIALS
    MLFLOW_TRACKING_URI MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN
    MLFLOW_EXPERIMENT_NAME MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_CONFIG_PATH
    MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
    MLFLOW_SERVER_ALLOWED_HOSTS
    POSTGRES_USER POSTGRES_DB POSTGRES_PASSWORD POSTGRES_PASSWORD_FILE POSTGRES_HOST_AUTH_METHOD
    PGPASSWORD PGPASSFILE OMP_NUM_THREADS PYTHONUNBUFFERED PYTHONPATH
    NVIDIA_VISIBLE_DEVICES NVIDIA_DRIVER_CAPABILITIES CUDA_VISIBLE_DEVICES
    ASCEND_RT_VISIBLE_DEVICES NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME HCCL_SOCKET_IFNAME
    SLURM_JOB_NODELIST SLURM_JOB_ID SLURM_NNODES SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK
    SKYPILOT_NODE_IPS SKYPILOT_NODE_RANK SKYPILOT_NUM_NODES RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT
    """,
    )
)
