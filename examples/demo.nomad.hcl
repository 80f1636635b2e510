# Six nginx instances behind port 80 of every node and behind one virtual address. Each answers with the client's address
# as it sees it, and logs it: the address is the client's own, whichever node the request came in at.
variable "instances" {
  description = "How many to run; they spread over the nodes."
  default     = 6
}

job "demo" {
  datacenters = ["*"]
  type        = "service"

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  group "web" {
    count = var.instances

    restart {
      attempts = 3
      interval = "1m"
      delay    = "2s"
      mode     = "delay"
    }

    network {
      mode = "bridge"
      port "http" {
        to = 8080
      }
    }

    service {
      name = "web"
      port = "http"
      tags = ["urlprefix-:80 proto=tcp"]

      meta {
        vip_port = "80"
      }

      check {
        name     = "answers"
        type     = "http"
        path     = "/"
        interval = "2s"
        timeout  = "1s"
      }
    }

    task "nginx" {
      driver = "exec"

      # The backslashes keep nginx's own variables out of the shell's hands.
      config {
        command = "/bin/sh"
        args = ["-c", <<-EOT
          mkdir -p /local/nginx
          # Opening /dev/stdout by its path needs rights that a task's user does not have; the pipe's reader has it open.
          rm -f /local/nginx/access && mkfifo /local/nginx/access
          cat /local/nginx/access &
          cat > /local/nginx/nginx.conf <<CONF
          daemon off;
          pid /local/nginx/pid;
          worker_processes 1;
          error_log stderr;
          events {}
          http {
            client_body_temp_path /local/nginx;
            proxy_temp_path /local/nginx;
            fastcgi_temp_path /local/nginx;
            uwsgi_temp_path /local/nginx;
            scgi_temp_path /local/nginx;
            log_format line '\$remote_addr:\$remote_port \$request_method \$request_uri \$status';
            access_log /local/nginx/access line;
            server {
              listen ${NOMAD_PORT_http};
              location / {
                default_type text/plain;
                return 200 "alloc=${NOMAD_ALLOC_ID} index=${NOMAD_ALLOC_INDEX} client=\$remote_addr:\$remote_port\n";
              }
            }
          }
          CONF
          exec /usr/sbin/nginx -e stderr -p /local/nginx -c /local/nginx/nginx.conf
        EOT
        ]
      }

      env {
        DEMO = "web"
      }

      resources {
        cpu    = 100
        memory = 64
      }

      logs {
        max_files     = 3
        max_file_size = 5
      }

      kill_timeout = "5s"
      kill_signal  = "SIGQUIT"
    }
  }
}
