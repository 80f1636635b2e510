# Two small web servers behind one virtual address.
#
#   meshctl dev &
#   meshctl job run examples/web.nomad.hcl
#   curl http://web.cluster/          # or the address that `meshctl route` shows
job "web" {
  group "web" {
    count = 2

    network {
      mode = "bridge"
      port "http" {}
    }

    service {
      name = "web"
      port = "http"
      tags = ["demo"]

      # The port of the service's virtual address; the instances themselves listen on ports the scheduler chooses.
      meta {
        vip_port = "80"
      }

      check {
        type     = "http"
        path     = "/"
        interval = "2s"
        timeout  = "1s"
      }
    }

    task "httpd" {
      driver = "exec"

      config {
        command = "/bin/sh"
        args    = ["-c", <<-EOT
          mkdir -p /local/www
          echo "hello from $NOMAD_ALLOC_ID, web[$NOMAD_ALLOC_INDEX]" > /local/www/index.html
          exec /bin/busybox httpd -f -v -p "$NOMAD_PORT_http" -h /local/www
        EOT
        ]
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
